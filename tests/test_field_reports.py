"""The kinds of fault that users of neighbouring tools reported, and the test that holds each of them.

Each kind has its tests in the file of its part; run all with `pytest tests/test_field_reports*.py`.
"""

from importlib import import_module

import pytest

ADAPTERS, FAMILIES, FILES, PADDING, TOKENS = (
    f"test_field_reports_{part}" for part in ("adapters", "families", "files", "padding", "tokens")
)
KINDS = {
    "a window and padding": (PADDING, "test_options_after_a_shared_prefix_score_as_whole_texts"),
    "modules_to_save": (ADAPTERS, "test_kinds_2_3_18_28_an_adapter_acts_as_in_peft_and_off_is_the_base_to_the_bit"),
    "a start that changes the base": (
        ADAPTERS, "test_kind_3_an_adapter_of_another_base_is_refused_and_leaves_no_trace",
    ),
    "LoRA on the unembedding": (ADAPTERS, "test_kind_4_divergences_are_of_the_heads_that_each_state_has"),
    "a leftover config": (ADAPTERS, "test_kind_5_a_merged_folder_with_its_adapters_config_is_the_merged_model"),
    "BOS in the middle": (TOKENS, "test_a_class_prompt_and_a_passage_have_one_beginning_of_text_as_one_text_has"),
    "EOS added by the tokenizer": (TOKENS, "test_no_text_is_scored_read_or_continued_with_an_end_of_text"),
    "sites that do not add up": (FAMILIES, "test_the_streams_differ_by_what_is_added"),
    "partial adapters": (ADAPTERS, "test_kind_9_what_is_asked_is_trained_whole_and_nothing_else"),
    "keys that do not match": (ADAPTERS, "test_kind_10_weights_that_do_not_match_are_listed"),
    "text beyond the context": (TOKENS, "test_in_a_set_what_is_beyond_the_context_is_left_out_counted_and_listed"),
    "continuous labels": (FILES, "test_continuous_labels_are_refused_as_scikit_learn_refuses_them"),
    "overflow": (FILES, "test_activations_that_overflow_are_told_with_site_layer_text_and_dtype_and_never_stored"),
    "a border inside a token": (TOKENS, "test_the_score_of_a_question_does_not_depend_on_the_rest_of_the_file"),
    "a file replaced at the same path": (ADAPTERS, "test_kind_15_a_file_replaced_at_the_same_path_is_read_again"),
    "a pad id outside the embedding": (TOKENS, "test_a_pad_id_outside_the_embedding_is_never_looked_up"),
    "GPT-2 and a long text": (TOKENS, "test_gpt2_is_erased_evaluated_and_probed_within_its_context"),
    "trained tokens": (ADAPTERS, "test_kinds_2_3_18_28_an_adapter_acts_as_in_peft_and_off_is_the_base_to_the_bit"),
    "a locale without UTF-8": (FILES, "test_a_locale_without_utf_8_reads_writes_and_prints_everything"),
    "an unwritable cache": (FILES, "test_a_cache_that_cannot_be_written_loses_no_work"),
    "overflow at load": (ADAPTERS, "test_kind_21_overflow_in_float16_names_the_dtype_that_helps"),
    "an adapter without a base": (ADAPTERS, "test_kind_22_an_adapter_without_a_base_asks_for_one"),
    "passages of one token": (TOKENS, "test_passages_of_one_token_alone_are_an_error_that_names_them"),
    "labels of every shape": (FILES, "test_labels_of_every_shape_that_scikit_learn_takes_give_the_same_rows"),
    "half-written files": (FILES, "test_what_is_half_written_names_the_file_and_what_to_do"),
    "question files of the field": ("test_question_files", ""),
    "adapter_model.bin": (ADAPTERS, "test_kind_27_a_pickled_adapter_is_refused_with_the_command_that_converts_it"),
    "saved embeddings": (ADAPTERS, "test_kind_28_saved_embeddings_of_equal_size_load"),
    "models trained whole": (ADAPTERS, "test_kind_29_a_model_trained_whole_is_adopted_beside_its_base"),
    "OPT, DBRX and friends": ("test_parity", ""),
    "biases of other modules": (ADAPTERS, "test_kind_31_adapters_with_biases_of_other_modules_take_turns"),
}  # fmt: skip
"""Kind -> file and test; an empty name stands for every test of the file."""


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_has_its_test(kind):
    file, name = KINDS[kind]
    assert [test for test in vars(import_module(file)) if test.startswith("test_") and test.startswith(name)]


def test_all_thirty_one_kinds_are_here():
    assert len(KINDS) == 31

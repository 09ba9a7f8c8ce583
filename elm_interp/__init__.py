"""elm_interp: erase a concept from a language model, and see inside whether it is gone or only hidden.

    import elm_interp as ei

    lm = ei.load_model("smollm2-135m")
    concept = ei.load_concept("harry-potter")
    run = ei.erase_concept(lm, concept, out="runs/demo")

Names stand in `__init__.pyi` and are imported when first used, so that `import elm_interp` stays quick.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__version__ = "0.1.0"

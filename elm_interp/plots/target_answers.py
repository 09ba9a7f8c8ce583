"""What ELM's target itself would answer, by its strength η.

    ax = plot_target_answers(frame)      # of `elm_interp.erase.target.target_answers`

Rows of `target.accuracy`, whose `position` is "η = 10".
"""

import pandas as pd
from matplotlib.axes import Axes

from elm_interp.errors import ConfigError
from elm_interp.plots.curves import draw_chance, draw_curve
from elm_interp.plots.figures import figure
from elm_interp.plots.frames import over_seeds
from elm_interp.plots.style import ERASED, SERIES, axes, legend_above

METRIC = "target.accuracy"


@figure(
    source="results/target.parquet",
    stage="erase",
    title="What the target itself would answer",
    main=False,
    order=90,
    how_to_read="The target that the erased model is trained towards, asked the concept's training questions itself. "
    "η is the strength of the guidance; at 0 the target is the base. Where the curve is above chance, equations 7 "
    "and 8 alone may leave the answers; logit matching can go further.",
    cannot_show="A curve at chance does not say that training will reach the target, nor that the answers are gone in "
    "another form. The target is asked in one template.",
)
def plot_target_answers(frame: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Accuracy of the target on questions about the concept by η, with intervals and chance; one curve a protocol.

    Args:
        frame: tidy rows of `target_answers`; several frames may be stacked.
        ax: where to draw; a new figure by default.

    Returns:
        The axes.

    Raises:
        ConfigError: no row of `target.accuracy`.
    """
    rows = frame[frame["metric"] == METRIC]
    if rows.empty:
        raise ConfigError(f"the frame has no row of {METRIC}; expected what target_answers returns.")
    rows = rows.assign(eta=rows["position"].str.removeprefix("η = ").astype(float))
    ax = axes(ax, height=3.4)
    curves = rows.groupby(["model", "protocol"], sort=False, dropna=False)
    for (_, protocol), colour in zip((key for key, _ in curves), (ERASED, *SERIES[1:]) * len(curves), strict=False):
        own = rows[rows["protocol"] == protocol]
        label = str(protocol).partition(" target")[0] if len(curves) > 1 else "target"
        draw_curve(ax, over_seeds(own, ["eta"]), "eta", label, colour, band=0.12)
    draw_chance(ax, rows)
    least = rows.loc[rows["eta"] > 0, "eta"].min()
    ax.set_xscale("symlog", linthresh=1.0 if pd.isna(least) else float(least))
    ticks = sorted(rows["eta"].unique())
    ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.minorticks_off()
    ax.set_xlim(0, max(ticks) * 1.3 or 1)
    ax.set(xlabel="Strength η of the guidance (0 = base)", ylabel="Accuracy", ylim=(0, 1.03))
    legend_above(ax, columns=2)
    return ax

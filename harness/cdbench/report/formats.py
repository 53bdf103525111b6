"""Numbers as people read them."""


def percent(value: float | None) -> str:
    """0.963 -> "96.3 %"; a gap stays a gap."""
    return "–" if value is None else f"{100 * value:.1f} %"


def points(value: float | None) -> str:
    """0.012 -> "+1.2"; percentage points, with a true minus."""
    return "–" if value is None else f"{100 * value:+.1f}".replace("-", "−")


def number(value: float | None) -> str:
    """Three digits after the point."""
    return "–" if value is None else f"{value:.3f}".replace("-", "−")


def p_value(value: float) -> str:
    """0.0004 -> "< 0.001"."""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"

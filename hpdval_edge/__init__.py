"""Multi-label image recognition for long-tailed labels; this package is the part that runs without torch."""

__version__ = "0.1.0"
__all__ = ["Predictor", "__version__", "load_bundle"]


def __getattr__(name: str) -> object:
    """Load the two public names on first use, so that ``hpedge --version`` stays instant."""
    if name == "Predictor":
        from hpdval_edge.predictor import Predictor

        return Predictor
    if name == "load_bundle":
        from hpdval_edge.bundle import load_bundle

        return load_bundle
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """Names of this module, the two lazy ones included."""
    return sorted({*globals(), *__all__})

"""HESSO-CRIC: HESSO that tries its choice out before it removes anything."""

from methods.hesso_cric.method import (
    HESSOCRIC,
    HESSOCRICConfig,
    HESSOCRICMethod,
    HESSOCRICOptions,
    Timetable,
    timetable,
)

__all__ = [
    "HESSOCRIC",
    "HESSOCRICConfig",
    "HESSOCRICMethod",
    "HESSOCRICOptions",
    "Timetable",
    "timetable",
]

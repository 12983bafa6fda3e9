"""HESSO-CRIC: HESSO that tries its choice out before it removes anything."""

from methods.hesso_cric.method import HESSOCRICMethod
from methods.hesso_cric.optimizer import HESSOCRIC
from methods.hesso_cric.settings import HESSOCRICConfig, Timetable, timetable

__all__ = ["HESSOCRIC", "HESSOCRICConfig", "HESSOCRICMethod", "Timetable", "timetable"]

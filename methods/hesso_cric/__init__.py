"""HESSO-CRIC: HESSO that tests its choice of channels before it removes any."""

from methods.hesso_cric.method import HESSOCRICMethod
from methods.hesso_cric.optimizer import HESSOCRIC
from methods.hesso_cric.settings import HESSOCRICConfig, Timetable, timetable

__all__ = ["HESSOCRIC", "HESSOCRICConfig", "HESSOCRICMethod", "Timetable", "timetable"]

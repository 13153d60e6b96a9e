"""Networks as graphs: captured once, lowered, and run by the native engine."""

from fastrobust.network.capture import CaptureError, Network, capture
from fastrobust.network.compile import Compiled, compile

__all__ = ["CaptureError", "Compiled", "Network", "capture", "compile"]

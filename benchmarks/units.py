"""Numbers with their units, for the fields of rows: `get_type_hints` tells them."""

from typing import Annotated

Seconds = Annotated[float, "s"]
Joules = Annotated[float, "J"]
Bytes = Annotated[int, "B"]
Count = Annotated[int, "number of"]
Setting = Annotated[int, "what the kernel's Config says"]
Flops = Annotated[int, "floating-point operations"]
Ratio = Annotated[float, "one over the other"]

# First quartile, median and third quartile.
SecondsQuartiles = tuple[Seconds, Seconds, Seconds]
RatioQuartiles = tuple[Ratio, Ratio, Ratio]

"""What a kernel is told about a layer, as a row of integers that it reads by position."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Geometry:
    """Inputs lie image by image, line by line, pixel by pixel, with the channels of a pixel side by side.

    The window of an output pixel is then a few segments of consecutive floats, one per line, and so are the weights
    of an output channel. A linear layer is the case of one pixel and one segment. Steps are in floats.
    """

    channels: int  # of the output
    weights: int  # floats per channel
    segments: int
    segment_floats: int
    pixels: int  # of an output image
    width: int  # of an output image
    image_floats: int  # from one input image to the next; all that follow count padding as part of the image
    line_step: int  # from a pixel's window to that of the pixel below
    pixel_step: int  # to that of the next pixel
    segment_step: int  # between the lines of one window
    images: int  # per row of the batch
    chunk: int  # output pixels that are done before the weights are read once more
    lines: int = 0  # of an input image without its padding; 0: there is no padding
    line_floats: int = 0
    lines_above: int = 0
    floats_left: int = 0
    padded_lines: int = 0
    padded_line_floats: int = 0

    def words(self, bounds: tuple[float, float] | None) -> NDArray[np.int64]:
        """As the kernels read it: the fields in order, then the bounds of the activation as floats."""
        numbers = np.array([*(getattr(self, field.name) for field in fields(self)), 0, 0], dtype=np.int64)
        numbers[-2:].view(np.float32)[::2] = bounds or (-np.inf, np.inf)
        return numbers


POSITIONS = {field.name: position for position, field in enumerate(fields(Geometry))}
LOW, HIGH = len(POSITIONS), len(POSITIONS) + 1

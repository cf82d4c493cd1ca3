"""Operators of PyTorch that its exporter to ONNX does not know, said in those of ONNX."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from jkoflow.optional import require


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Returns the translations by operator; onnxscript is imported when they are asked for."""
    op = require("onnxscript", "--format onnx", "onnx").opset18

    def searchsorted(knots: Any, values: Any, out_int32: bool = False, right: bool = False, **_: Any) -> Any:
        """Counts the knots (d, K) that are at most, or less than, each of the values (d, B)."""
        compare = op.LessOrEqual if right else op.Less
        last, before = op.Constant(value_ints=[-1]), op.Constant(value_ints=[-2])
        below = compare(op.Unsqueeze(knots, before), op.Unsqueeze(values, last))
        return op.ReduceSum(op.Cast(below, to=6 if out_int32 else 7), last, keepdims=0)  # INT32, INT64

    def hypot(x: Any, y: Any) -> Any:
        """Returns the length of (x, y) without overflow."""
        x, y = op.Abs(x), op.Abs(y)
        most = op.Max(x, y)
        ratio = op.Div(op.Min(x, y), most)
        return op.Mul(most, op.Sqrt(op.Add(op.Mul(ratio, ratio), op.CastLike(op.Constant(value_float=1.0), x))))

    return {torch.ops.aten.searchsorted.Tensor: searchsorted, torch.ops.aten.hypot.default: hypot}

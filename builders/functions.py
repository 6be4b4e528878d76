"""TensorRT's native operators, with a body of standard operators for every other runtime.

The graph calls `trt::TRT_Attention` and `trt::TRT_KVCacheUpdate`. TensorRT's parser imports the
names natively and never looks at the bodies; ONNX Runtime inlines the bodies. So one file serves
both, and the meaning that TensorRT gives the names is what the tests check on a CPU.
"""

from __future__ import annotations

from typing import Any

import onnx
import onnx_ir as ir
from onnx import TensorProto, helper

DOMAIN = "trt"
CROSS_DOMAIN = "trt.cross"
"""TensorRT knows its operators in every domain; here the same name has another body."""
OPSET = 24


_ATTENTION_INPUTS = ["q", "k", "v", "mask", "query_lengths", "kv_lengths"]
_ATTENTION_ATTRIBUTES = ["causal_kind", "query_form", "kv_form"]


def attention_function() -> ir.Function:
    """`TRT_Attention` of a scaled query, bottom-right causal over `kv_lengths` valid cache positions.

    The body cuts the cache at the longest row first: ONNX Runtime's Attention costs its key length,
    not the valid length.
    """
    nodes = [
        helper.make_node("Cast", ["kv_lengths"], ["lengths"], to=TensorProto.INT64),
        helper.make_node("ReduceMax", ["lengths"], ["longest"], keepdims=1),
        *_cut("longest"),
        helper.make_node(
            "Attention",
            ["q", "keys", "values", "", "", "", "lengths"],
            ["y"],
            is_causal=1,
            scale=1.0,
        ),
    ]
    return _function("TRT_Attention", _ATTENTION_INPUTS, nodes, _ATTENTION_ATTRIBUTES)


def masked_attention_function() -> ir.Function:
    """`TRT_Attention` of a scaled query over the cache positions that a bool mask [B, 1, S, C] allows.

    The body cuts the cache behind the last position that anyone sees.
    """
    nodes = [
        helper.make_node("Cast", ["mask"], ["seen"], to=TensorProto.INT64),
        helper.make_node("Constant", [], ["other_axes"], value_ints=[0, 1, 2]),
        helper.make_node("ReduceMax", ["seen", "other_axes"], ["is_seen"], keepdims=0),
        *_longest(),
        *_cut("longest"),
        helper.make_node("Constant", [], ["last_axis"], value_ints=[3]),
        helper.make_node("Slice", ["mask", "zero", "longest", "last_axis"], ["allowed"]),
        helper.make_node("Attention", ["q", "keys", "values", "allowed"], ["y"], scale=1.0),
    ]
    return _function("TRT_Attention", _ATTENTION_INPUTS, nodes, _ATTENTION_ATTRIBUTES)


def cross_attention_function() -> ir.Function:
    """`TRT_Attention` of a scaled query over what a bool mask [X, 1, S, C] allows, for any X.

    The body cuts the cache behind the last position that anyone sees, and is skipped where X is 0.
    """
    attend = [
        helper.make_node("Cast", ["mask"], ["seen"], to=TensorProto.UINT8),
        helper.make_node("Constant", [], ["other_axes"], value_ints=[0, 1, 2]),
        helper.make_node("ReduceMax", ["seen", "other_axes"], ["seen_byte"], keepdims=0),
        helper.make_node("Cast", ["seen_byte"], ["is_seen"], to=TensorProto.INT64),
        *_longest(),
        *_cut("longest"),
        helper.make_node("Constant", [], ["last_axis"], value_ints=[3]),
        helper.make_node("Slice", ["mask", "zero", "longest", "last_axis"], ["allowed"]),
        helper.make_node("Attention", ["q", "keys", "values", "allowed"], ["attended"], scale=1.0),
    ]
    skip = [helper.make_node("Identity", ["q"], ["skipped"])]
    nodes = [
        helper.make_node("Size", ["q"], ["size"]),
        helper.make_node("Cast", ["size"], ["has_rows"], to=TensorProto.BOOL),
        helper.make_node(
            "If",
            ["has_rows"],
            ["y"],
            then_branch=_branch("attend", attend, "attended"),
            else_branch=_branch("skip", skip, "skipped"),
        ),
    ]
    return _function(
        "TRT_Attention", _ATTENTION_INPUTS, nodes, _ATTENTION_ATTRIBUTES, domain=CROSS_DOMAIN
    )


def _branch(name: str, nodes: list[onnx.NodeProto], output: str) -> onnx.GraphProto:
    # The type of the output follows from the nodes.
    return helper.make_graph(nodes, name, [], [onnx.ValueInfoProto(name=output)])


def _longest() -> list[onnx.NodeProto]:
    """`longest` [1], one after the last position of `is_seen` [C] that is 1; 1 if none is."""
    return [
        helper.make_node("Size", ["is_seen"], ["capacity"]),
        helper.make_node("Constant", [], ["one"], value_int=1),
        helper.make_node("Add", ["capacity", "one"], ["end"]),
        helper.make_node("Range", ["one", "end", "one"], ["number"]),
        helper.make_node("Mul", ["is_seen", "number"], ["seen_number"]),
        helper.make_node("ReduceMax", ["seen_number"], ["last"], keepdims=1),
        helper.make_node("Max", ["last", "one"], ["longest"]),
    ]


def _cut(length: str) -> list[onnx.NodeProto]:
    """`keys` and `values`, the first `length` positions of `k` and `v`."""
    return [
        helper.make_node("Constant", [], ["zero"], value_ints=[0]),
        helper.make_node("Constant", [], ["capacity_axis"], value_ints=[2]),
        helper.make_node("Slice", ["k", "zero", length, "capacity_axis"], ["keys"]),
        helper.make_node("Slice", ["v", "zero", length, "capacity_axis"], ["values"]),
    ]


def cache_update_function() -> ir.Function:
    """`TRT_KVCacheUpdate`: write the update [B, K, S, D] at `write_indices[b]` of each cache row."""
    nodes = [
        helper.make_node("TensorScatter", ["cache", "update", "write_indices"], ["y"], axis=-2)
    ]
    return _function(
        "TRT_KVCacheUpdate",
        ["cache", "update", "write_indices"],
        nodes,
        ["axis", "mode", "update_form"],
    )


def _function(
    name: str,
    inputs: list[str],
    nodes: list[onnx.NodeProto],
    attributes: list[str],
    domain: str = DOMAIN,
) -> ir.Function:
    opsets = [helper.make_opsetid("", OPSET)]
    proto = helper.make_function(domain, name, inputs, ["y"], nodes, opsets, attributes=attributes)
    return ir.serde.deserialize_function(proto)


def attention(op: Any, q: ir.Value, k: ir.Value, v: ir.Value, kv_lengths: ir.Value) -> ir.Value:
    """Causal attention of the scaled q [B, N, S, D] over the first `kv_lengths[b]` cached keys."""
    return op.builder.opset(DOMAIN, 1).TRT_Attention(
        q,
        k,
        v,
        None,
        None,
        kv_lengths,
        causal_kind="lower_right",
        query_form="padded_bhnd",
        kv_form="padded_bhnd",
    )


def masked_attention(
    op: Any, q: ir.Value, k: ir.Value, v: ir.Value, mask: ir.Value, domain: str = DOMAIN
) -> ir.Value:
    """Attention of the scaled q [B, N, S, D] over the keys that a bool mask [B, 1, S, C] allows."""
    return op.builder.opset(domain, 1).TRT_Attention(
        q,
        k,
        v,
        mask,
        causal_kind="none",
        query_form="padded_bhnd",
        kv_form="padded_bhnd",
    )


def cache_update(op: Any, cache: ir.Value, update: ir.Value, write_indices: ir.Value) -> ir.Value:
    """The cache [B, K, C, D] with `update` [B, K, S, D] written at `write_indices` [B]."""
    return op.builder.opset(DOMAIN, 1).TRT_KVCacheUpdate(
        cache, update, write_indices, update_form="padded_bhnd", axis=-2, mode="linear"
    )

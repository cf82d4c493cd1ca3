"""How a call of the CUDA kernels is planned: shares of the batch, kernels, buffers. Needs neither a GPU nor nvcc."""

import json
import math

import pytest
import torch

from emulation import problem_of
from jkoflow.ops import cuda
from jkoflow.ops.extension import C
from jkoflow.ops.tableau import TABLEAUX

pytestmark = pytest.mark.skipif(C is None, reason="no compiled extension")

PRECISIONS = ("fp32", "tf32x3", "tf32")
CALLS = ("forward", "backward", "jko_loss", "evaluate", "evaluate_backward", "adaptive", "adaptive_backward")

# ---- Shares

SHARES = {
    "no rest": (10_000, 132, 40, 16, (125, 80, 2, 0)),
    "a small tile as rest": (10_000, 132, 32, 16, (125, 80, 2, 1)),
    "a large tile as rest": (10_000, 264, 40, 16, (250, 40, 1, 0)),
    "small tiles only": (250, 132, 32, 16, (16, 16, 0, 1)),
    "one thread block": (3, 264, 40, 16, (1, 16, 0, 1)),
    "one multiprocessor": (43, 1, 40, 16, (1, 56, 1, 1)),
    "only one kind of tiles": (1000, 132, 8, 8, (125, 8, 1, 0)),
}


@pytest.mark.parametrize(("batch", "slots", "tile", "small", "expected"), SHARES.values(), ids=SHARES.keys())
def test_shares_of_a_batch(batch, slots, tile, small, expected):
    assert C.cuda_share_out(batch, slots, tile, small) == expected


def test_shares_are_even_and_cover_the_batch():
    for tile, small in ((40, 16), (32, 16), (16, 8), (8, 8)):
        for slots in (1, 2, 132, 264, 432):
            for batch in (*range(1, 300), 2000, 4999, 10_000, 65_536, 100_000, 3_000_000_000):
                blocks, samples, large_tiles, small_tiles = C.cuda_share_out(batch, slots, tile, small)
                assert samples == large_tiles * tile + small_tiles * small
                assert small_tiles <= 1
                assert 1 <= blocks <= slots
                assert (blocks - 1) * samples < batch <= blocks * samples
                # never more than what tiles dealt out one by one give to the busiest block
                rounds = math.ceil(math.ceil(batch / tile) / slots)
                assert samples <= rounds * tile


@pytest.mark.parametrize("wrong", [(0, 1, 8, 8), (1, 0, 8, 8), (1, 1, 8, 0), (1, 1, 8, 16)])
def test_shares_of_nothing_are_refused(wrong):
    with pytest.raises(ValueError, match="must be at least 1, and tile at least small_tile"):
        C.cuda_share_out(*wrong)


# ---- Kernels and buffers


def gpu(architecture):
    found = C.CudaGpu()  # an H100
    if architecture == 80:
        found.architecture, found.multiprocessors = 80, 108
        found.shared_per_block, found.shared_per_multiprocessor = 163 * 1024, 164 * 1024
    return found


def usual_problem(**changes):
    tableau = TABLEAUX["rk4"]
    usual = {"batch": 10_000, "dim": 6, "time": True, "hidden": [128, 128], "num_steps": 3}
    return problem_of(**usual | {"tableau": C.Tableau(tableau.a, tableau.b, tableau.c)} | changes)


def test_plan_of_the_loss_on_an_h100():
    plan = C.cuda_plan(usual_problem(), "jko_loss")
    assert (plan["H"], plan["threads"], plan["tile"], plan["small_tile"], plan["resident"]) == (128, 256, 40, 16, 1)
    assert plan["warp_groups"]
    assert (plan["thread_blocks"], plan["share"], plan["large_tiles"], plan["small_tiles"]) == (125, 80, 2, 0)
    assert [launch["kernel"] for launch in plan["launches"]] == ["prepare", "backward", "reduce", "finish"]
    # prepare: 1 for each vector and matrix of 128 x 8 (4), 2 for those of 16 x 128 (2), 16 for those of 128 x 128 (4)
    assert [launch["thread_blocks"] for launch in plan["launches"]] == [72, 125, 274, 59]
    main = plan["launches"][1]
    assert (main["thread_blocks"], main["threads"], main["shared_bytes"]) == (125, 256, plan["shared_bytes"])
    # the loss keeps its stages' inputs: 3 steps of 4 stages for 40 samples of 6 features, 240 numbers and some room
    assert plan["scratch_bytes"] == 3 * 4 * 256 * 4
    partial_gradient = 128 * 8 + 128 * 8 + 2 * 128 * 128 + 128 + 8
    assert plan["workspace_bytes"] > 125 * (plan["scratch_bytes"] + 4 * partial_gradient)


def test_warp_groups_are_of_3xtf32_on_an_h100_without_tangents():
    others = (
        C.cuda_plan(usual_problem(), "jko_loss", gpu=gpu(80)),
        C.cuda_plan(usual_problem(), "jko_loss", C.Precision.tf32),
        C.cuda_plan(usual_problem(hidden=[128, 128, 128]), "jko_loss"),
    )
    assert not any(plan["warp_groups"] for plan in others)
    plan = others[0]
    assert (plan["tile"], plan["small_tile"], plan["thread_blocks"], plan["share"]) == (32, 16, 105, 96)
    # an operand has a second plane: 8 panels instead of 4
    for precision, planes, tile in ((C.Precision.tf32x3, 8, 40), (C.Precision.tf32, 4, 32)):
        first, *_ = C.cuda_plan(usual_problem(), "jko_loss", precision)["buffers"]
        assert (first["name"], first["bytes"]) == ("panels", planes * tile * 128 * 4)


def test_plan_of_the_forward_pass_on_an_h100():
    plan = C.cuda_plan(usual_problem(), "forward")
    assert (plan["tile"], plan["small_tile"], plan["resident"], plan["thread_blocks"]) == (40, 16, 2, 250)
    assert [launch["kernel"] for launch in plan["launches"]] == ["prepare", "forward"]
    assert plan["scratch_bytes"] == 0


def test_plans_of_rows_with_times_of_their_own():
    for call, kernel in (("evaluate", "forward"), ("evaluate_backward", "backward")):
        plan, other = C.cuda_plan(usual_problem(row_times=True), call), C.cuda_plan(usual_problem(), kernel)
        assert [launch["kernel"] for launch in plan["launches"]] == [launch["kernel"] for launch in other["launches"]]
        assert (plan["thread_blocks"], plan["share"]) == (other["thread_blocks"], other["share"])
    for call in ("adaptive", "adaptive_backward"):
        for batch in (1, 3, 250, 10_000, 1_000_000):
            plan = C.cuda_plan(usual_problem(batch=batch, row_times=True), call)
            assert plan["tile"] == plan["small_tile"] == 32
            assert (plan["large_tiles"], plan["small_tiles"]) == (0, 0)  # rows are taken up one by one
            assert plan["share"] == max(8, math.ceil(batch / (132 * plan["resident"])))
            assert plan["thread_blocks"] == math.ceil(batch / plan["share"])


@pytest.mark.parametrize("architecture", [80, 90])
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("divergence", ["none", "exact", "hutchinson"])
@pytest.mark.parametrize("hidden", [[64], [50, 128], [128, 20, 30], [256, 256]])
def test_buffers_fill_the_shared_memory_and_no_more(architecture, call, divergence, hidden):
    device = gpu(architecture)
    for dim in (1, 6, 64, 128):
        problem = usual_problem(dim=dim, hidden=hidden, divergence=getattr(C.Divergence, divergence))
        plan = C.cuda_plan(problem, call, gpu=device)
        placed = {where: 0 for where in ("shared", "scratch", "gradient")}
        for buffer in plan["buffers"]:
            placed[buffer["where"]] += math.ceil(buffer["bytes"] / 128) * 128
        assert plan["shared_bytes"] == placed["shared"]
        assert plan["scratch_bytes"] >= placed["scratch"]
        assert plan["shared_bytes"] <= device.shared_per_block
        assert plan["resident"] * (plan["shared_bytes"] + 1024) <= device.shared_per_multiprocessor
        assert (plan["thread_blocks"] - 1) * plan["share"] < problem.batch <= plan["thread_blocks"] * plan["share"]
        assert plan["thread_blocks"] <= plan["resident"] * device.multiprocessors


def test_rows_of_narrow_sums_lie_in_banks_of_their_own():
    for dim in range(1, 129):
        plan = C.cuda_plan(usual_problem(dim=dim, linear=16), "backward")
        floats = {buffer["name"]: buffer["bytes"] // 4 for buffer in plan["buffers"]}
        for name, rows, columns in (
            ("first_sum", plan["H"], dim + 2),
            ("last_sum", plan["H"], dim),
            ("linear_sum", math.ceil(dim / 16) * 16, dim),
        ):
            stride, rest = divmod(floats[name], rows)
            assert (rest, stride % 16) == (0, 8)
            assert columns <= stride < columns + 16


def test_buffers_go_elsewhere_where_shared_memory_is_small():
    problem = usual_problem(hidden=[128, 128, 128])
    where = {}
    for architecture in (80, 90):
        plan = C.cuda_plan(problem, "forward", gpu=gpu(architecture))
        where[architecture] = [buffer["where"] for buffer in plan["buffers"] if buffer["name"] == "slot"]
        assert plan["resident"] == 2  # as many as its registers allow: slots make room
    assert where == {80: ["scratch", "scratch", "scratch"], 90: ["shared", "shared", "scratch"]}


def test_a_batch_without_samples_has_gradients_of_zero_only():
    assert C.cuda_plan(usual_problem(batch=0), "forward")["launches"] == []
    plan = C.cuda_plan(usual_problem(batch=0), "backward")
    assert [launch["kernel"] for launch in plan["launches"]] == ["reduce", "finish"]
    assert plan["thread_blocks"] == 0


def test_all_sizes_up_to_the_limits_are_covered():
    for width in (1, 64, 65, 128, 129, 256):
        for layers in (1, 2, 3):
            for divergence in ("none", "exact", "hutchinson"):
                kind = getattr(C.Divergence, divergence)
                for dim in range(1, 129):
                    problem = problem_of(dim=dim, hidden=[width] * layers, time=True, divergence=kind)
                    for precision in PRECISIONS:
                        assert C.cuda_unsupported(problem, getattr(C.Precision, precision)) == ""


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"float64": True}, "compute in float32, x is float64"),
        ({"hidden": [64, 257]}, "up to 256 units, the velocity has one of 257"),
        ({"hidden": [8, 8, 8, 8]}, "have 1 to 3 hidden layers, the velocity has 4"),
        ({"dim": 129}, "take up to 128 features, x has 129"),
        ({"context_dim": 5000}, "5000 context variables would take it"),
    ],
)
def test_what_the_kernels_do_not_cover_is_refused_with_its_reason(changes, reason):
    assert C.cuda_unsupported(problem_of(), C.Precision.tf32x3) == ""
    assert reason in C.cuda_unsupported(problem_of(**changes), C.Precision.tf32x3)
    with pytest.raises(RuntimeError, match=f"the CUDA kernels .*{reason}"):
        C.cuda_plan(problem_of(**changes), "forward")


def test_what_no_plan_can_be_made_for():
    with pytest.raises(ValueError, match=r"call must be 'forward', .* or 'adaptive_backward', got 'loss'"):
        C.cuda_plan(problem_of(), "loss")
    none = C.CudaGpu()
    none.multiprocessors = 0
    with pytest.raises(ValueError, match="a GPU has at least one multiprocessor"):
        C.cuda_plan(problem_of(), "forward", gpu=none)


# ---- What `jkoflow doctor` shows


def test_usual_plan_without_a_gpu(monkeypatch):
    monkeypatch.setattr(cuda, "missing", lambda: "no CUDA device")
    plan = cuda.usual_plan()
    assert plan["gpu"] == "H100 (assumed)"
    assert (plan["batch"], plan["dim"], plan["hidden"], plan["precision"]) == (10_000, 6, [128, 128], "tf32x3")
    full = C.cuda_plan(usual_problem(), "jko_loss")
    assert all(full[name] == plan[name] for name in plan.keys() - {"gpu", "batch", "dim", "hidden"})
    assert json.loads(json.dumps(plan)) == plan


def test_usual_plan_with_a_gpu(monkeypatch):
    class WithGpu:
        has_cuda = True

        def __getattr__(self, name):
            return getattr(C, name)

        def cuda_gpu(self, device):
            assert device == 0
            return gpu(80)

    monkeypatch.setattr(cuda, "_C", WithGpu())
    monkeypatch.setattr(cuda, "missing", lambda: None)
    monkeypatch.setattr(cuda, "architectures", lambda: ["80-real"])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "Some GPU")
    for capability, name, precision, blocks in (
        ((8, 0), "Some GPU", "tf32x3", 105),
        ((8, 6), "Some GPU", "fp32", 105),
        ((9, 0), "H100 (assumed)", "tf32x3", 125),  # the kernels are not built for it
    ):
        cuda.resolve_precision.cache_clear()
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index, found=capability: found)
        plan = cuda.usual_plan()
        assert (plan["gpu"], plan["precision"], plan["thread_blocks"]) == (name, precision, blocks)
    cuda.resolve_precision.cache_clear()


def test_usual_plan_without_the_extension(monkeypatch):
    monkeypatch.setattr(cuda, "_C", None)
    assert cuda.usual_plan() is None


@pytest.mark.gpu
@pytest.mark.skipif(cuda.missing() is not None, reason=f"no CUDA kernels here: {cuda.missing()}")
def test_a_plan_without_using_the_gpu_is_the_one_that_runs_on_it():
    launch = cuda._describe_launch(0, "auto")
    for hidden in ([64, 64], [128, 128], [256, 256], [128, 128, 128]):
        for call in ("forward", "backward", "jko_loss"):
            estimated = C.cuda_plan(usual_problem(hidden=hidden), call, launch.precision, C.cuda_gpu(0))
            assert C.cuda_plan(usual_problem(hidden=hidden), call, launch) == estimated

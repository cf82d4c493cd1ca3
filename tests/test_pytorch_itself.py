"""What PyTorch does with functions and modules works on jkoflow's: transforms, compilation, export, autocast."""

import copy
import shutil
import subprocess
import sys

import pytest
import torch
from torch import nn

import jkoflow
from jkoflow import Block, FallbackWarning, JKOFlow
from jkoflow.ops import UnsupportedError, native
from oracles import random_velocity

FUSED = native.capabilities()["cpu"] is None
pytestmark = [
    pytest.mark.skipif(not FUSED, reason="no compiled extension"),
    pytest.mark.filterwarnings(
        "ignore:`torch.jit.script(_method)?` is deprecated:DeprecationWarning"
    ),  # torch's forward mode
]
SILENT = pytest.mark.filterwarnings("ignore:using the PyTorch reference. the kernels")
T = torch.tensor(0.3, dtype=torch.float64)


def rows(*shape):
    return torch.randn(*shape, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def random_flow(dtype=torch.float32, hidden=(16, 16), blocks=2):
    stack = [
        Block(random_velocity(3, hidden, dtype=dtype, scale=0.7, seed=seed), num_steps=2) for seed in range(blocks)
    ]
    return JKOFlow(3, stack, torch.ones(3, dtype=dtype), 2 * torch.ones(3, dtype=dtype))


def mixed(results):
    """One number in which every entry of the results has a weight of its own."""
    flat = torch.cat([result.flatten() for result in results])
    return flat.sin() @ torch.linspace(-1, 2, len(flat), dtype=flat.dtype).cos()


# ---- torch.func: the kernels against the reference, which transforms see through

VELOCITY = random_velocity(3, (7, 6), linear=True)
CONDITIONAL = random_velocity(3, (7, 6), context_dim=2)
CALLS = {
    "integrate": lambda x, backend: mixed(jkoflow.integrate(VELOCITY, x, num_steps=2, backend=backend)),
    "hutchinson": lambda x, backend: mixed(
        jkoflow.integrate(VELOCITY, x, divergence="hutchinson", noise=torch.ones_like(x), backend=backend)[:2]
    ),
    "context": lambda x, backend: mixed(
        jkoflow.integrate(CONDITIONAL, x, context=x[:, :2].sin(), backend=backend, keep_path=False)[:2]
    ),
    "jko_loss": lambda x, backend: jkoflow.jko_loss(VELOCITY, x, 0.7, num_steps=2, backend=backend).total,
    "velocity_and_divergence": lambda x, backend: mixed(
        jkoflow.velocity_and_divergence(VELOCITY, x, x[0, 0], backend=backend)
    ),
}
TRANSFORMS = {
    "grad": lambda f: torch.func.grad(f)(rows(4)),
    "vjp": lambda f: torch.func.vjp(f, rows(4))[1](T)[0],
    "jacrev": lambda f: torch.func.jacrev(f)(rows(4)),
    "jacfwd": lambda f: torch.func.jacfwd(f)(rows(2)),
    "jvp": lambda f: torch.func.jvp(f, (rows(4),), (rows(4).cos(),))[1],
    "hessian": lambda f: torch.func.hessian(f)(rows(2)),
    "jacrev of grad": lambda f: torch.func.jacrev(torch.func.grad(f))(rows(2)),
    "vmap": lambda f: torch.func.vmap(f)(rows(3, 2)),
    "vmap of columns": lambda f: torch.func.vmap(f, in_dims=1)(rows(2, 3)),
    "vmap of vmap": lambda f: torch.func.vmap(torch.func.vmap(f))(rows(2, 3, 2)),
    "vmap of grad": lambda f: torch.func.vmap(torch.func.grad(f))(rows(3, 2)),
    "grad of vmap": lambda f: torch.func.grad(lambda x: torch.func.vmap(f)(x).prod())(rows(3, 2)),
    "vmap of hessian": lambda f: torch.func.vmap(torch.func.hessian(f))(rows(2, 1)),
    "third derivative": lambda f: torch.func.grad(
        lambda x: torch.func.grad(lambda y: torch.func.grad(f)(y).sum())(x).sum()
    )(rows(2)),
}


@SILENT
@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("call", CALLS)
def test_transforms_of_torch_func(call, transform):
    got, expected = (
        TRANSFORMS[transform](lambda x, backend=backend: CALLS[call](x, backend)) for backend in ("cpu", "reference")
    )
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


def counted(monkeypatch, *names):
    """The sizes of the batches that kernels are called with, by the name of the kernel."""
    calls = []
    for name in names:
        run = getattr(native, name)
        monkeypatch.setattr(native, name, lambda *a, run=run, name=name: calls.append(name) or run(*a))
    return calls


def test_rows_of_a_vmap_are_one_call_of_the_kernel_without_a_warning(monkeypatch):
    calls = counted(monkeypatch, "forward", "backward")
    x = rows(5)
    flow = random_flow(torch.float64).requires_grad_(False)
    got = torch.func.vmap(flow.log_prob)(x)
    assert calls == ["forward"] * 2
    torch.testing.assert_close(got, flow.log_prob(x))
    calls.clear()
    gradient = torch.func.vmap(torch.func.grad(flow.log_prob))(x)
    assert calls == ["forward"] * 2 + ["backward"] * 2
    leaf = x.clone().requires_grad_()
    torch.testing.assert_close(gradient, torch.autograd.grad(flow.log_prob(leaf).sum(), leaf)[0])


@pytest.mark.parametrize("options", [{"num_steps": 2}, {"method": "dopri5"}])
def test_gradients_of_every_sample(options):
    velocity, x, context = CONDITIONAL, rows(5), rows(5)[:, :2].cos()
    parameters = {name: parameter.detach() for name, parameter in velocity.named_parameters()}

    class Loss(nn.Module):
        def __init__(self):
            super().__init__()
            self.velocity = velocity

        def forward(self, x, context):
            return mixed(jkoflow.integrate(self.velocity, x, context=context, **options)[:2])

    def loss(parameters, x, context):
        named = {f"velocity.{name}": value for name, value in parameters.items()}
        return torch.func.functional_call(Loss(), named, (x.unsqueeze(0), context.unsqueeze(0)))

    with pytest.warns(FallbackWarning, match="sum its gradients over the rows, not one for each sample"):
        got = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(parameters, x, context)
    for i in range(5):
        one = Loss()(x[i : i + 1], context[i : i + 1])
        expected = torch.autograd.grad(one, list(velocity.parameters()))
        for name, value in zip(parameters, expected, strict=True):
            torch.testing.assert_close(got[name][i], value, rtol=1e-10, atol=1e-10)


@SILENT
def test_several_sets_of_weights():
    x, velocity = rows(4), random_velocity(3, (7, 6))
    parameters = {name: torch.stack([p.detach(), 2 * p.detach()]) for name, p in velocity.named_parameters()}

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.velocity = velocity

        def forward(self, x, method):
            return jkoflow.integrate(self.velocity, x, method=method).logdet

    def solve(parameters, method="rk4"):
        named = {f"velocity.{name}": value for name, value in parameters.items()}
        return torch.func.functional_call(Model(), named, (x, method))

    got = torch.func.vmap(solve)(parameters)
    for i in range(2):
        torch.testing.assert_close(got[i], solve({name: value[i] for name, value in parameters.items()}))
    with pytest.raises(UnsupportedError, match="cannot batch integrate_adaptive over parameters: pass num_steps"):
        torch.func.vmap(lambda p: solve(p, "dopri5"))(parameters)


@SILENT
@pytest.mark.parametrize("times", [None, [0.0, 0.3, 0.8, 1.0]])
def test_transforms_of_adaptive_steps(times):
    def solve(x, backend="cpu"):
        found = jkoflow.integrate(VELOCITY, x, method="dopri5", times=times, backend=backend)
        return mixed(found[:2] if times is None else [found.path, found.logdet_path])

    def alone(function, x):
        return torch.stack([function(one) for one in x])

    x = rows(3, 2)
    expected = torch.func.grad(lambda x: solve(x, "reference"))
    torch.testing.assert_close(torch.func.vmap(solve)(x), alone(solve, x))
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(solve))(x), alone(expected, x))
    twice = torch.func.vmap(torch.func.jacrev(torch.func.grad(solve)))(x)
    torch.testing.assert_close(twice, alone(torch.func.jacrev(expected), x))
    hessian = torch.func.hessian(lambda x: solve(x, "auto"))
    torch.testing.assert_close(torch.stack([hessian(one) for one in x]), twice)
    with pytest.raises(UnsupportedError, match=r"vmap cannot batch adaptive steps of PyTorch's operations.*num_steps"):
        torch.func.vmap(hessian)(x)


@SILENT
def test_forward_mode_by_hand():
    x, moved = rows(4), rows(4).cos()
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, moved)
        tangent = torch.autograd.forward_ad.unpack_dual(CALLS["integrate"](dual, "cpu")).tangent
    torch.testing.assert_close(tangent, (torch.func.grad(lambda x: CALLS["integrate"](x, "cpu"))(x) * moved).sum())


# ---- Second derivatives by autograd, told once


@pytest.mark.parametrize("name", ["log_prob", "log_prob within a tolerance", "jko_loss", "integrate adaptively"])
def test_second_derivatives_come_unasked_and_are_told_once(name):
    flow = random_flow(torch.float64)
    x = rows(4).requires_grad_()

    def value(backend):
        if name == "jko_loss":
            return jkoflow.jko_loss(VELOCITY, x, 0.7, backend=backend).total
        if name == "integrate adaptively":
            return mixed(jkoflow.integrate(VELOCITY, x, method="dopri5", backend=backend)[:2])
        if name == "log_prob within a tolerance":
            return flow.log_prob(x, tol=1e-4).sum()
        return flow.log_prob(x).sum()

    def hessian_of_first(backend):
        (score,) = torch.autograd.grad(value(backend), x, create_graph=True)
        return torch.stack([torch.autograd.grad(score[0, i], x, retain_graph=True)[0] for i in range(3)])[:, 0]

    with pytest.warns(FallbackWarning, match="the kernels differentiate once") as told:
        got = hessian_of_first("auto")
    assert len(told) == 1
    assert told[0].filename == __file__
    torch.testing.assert_close(got, got.T)
    if not name.startswith("log_prob"):
        torch.testing.assert_close(got, hessian_of_first("reference"), rtol=1e-8, atol=1e-9)
        return
    grids = flow.grids_for(x.detach(), tol=1e-4) if name.endswith("tolerance") else None
    step, sides = 1e-5, []
    for i in range(3):
        moved = [(x + sign * step * torch.eye(3)[i].double()).detach().requires_grad_() for sign in (1, -1)]
        plus, minus = (torch.autograd.grad(flow.log_prob(m, num_steps=grids).sum(), m)[0][0] for m in moved)
        sides.append((plus - minus) / (2 * step))
    torch.testing.assert_close(got, torch.stack(sides), rtol=1e-5, atol=1e-5)


@SILENT
def test_score_matching_trains_parameters():
    velocity = random_velocity(3, (7, 6))
    flow = JKOFlow(3, [Block(velocity, num_steps=2)])
    found = []
    for backend in ("kernels", "reference"):
        flow = JKOFlow(3, [Block(copy.deepcopy(velocity), num_steps=2)])
        x = rows(4).requires_grad_()
        if backend == "reference":
            integrated = jkoflow.integrate(flow.stack[0].velocity, x, num_steps=2, backend="reference")
            log_prob = -0.5 * integrated.x.square().sum(1) + integrated.logdet
        else:
            log_prob = flow.log_prob(x)
        (score,) = torch.autograd.grad(log_prob.sum(), x, create_graph=True)
        trace = sum(torch.autograd.grad(score[:, i].sum(), x, create_graph=True)[0][:, i] for i in range(3))
        loss = (trace + 0.5 * score.square().sum(1)).mean()
        found.append(torch.autograd.grad(loss, list(flow.parameters())))
    for got, expected in zip(*found, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-10)


# ---- Compilation and export


def test_log_prob_compiles_into_one_graph():
    torch._dynamo.reset()
    flow = random_flow(blocks=1)
    compiled = torch.compile(flow.log_prob, fullgraph=True, dynamic=True, backend="aot_eager")
    for batch in (4, 7):
        x = rows(batch).float().requires_grad_()
        got, expected = compiled(x), flow.log_prob(x)
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)
        gradients = [torch.autograd.grad(value.sum(), [x, *flow.parameters()]) for value in (got, expected)]
        for value, other in zip(*gradients, strict=True):
            torch.testing.assert_close(value, other, rtol=1e-5, atol=1e-5)
    with pytest.raises(RuntimeError, match="x must be finite"):
        compiled(torch.full((4, 3), torch.nan))


class LogProb(nn.Module):
    def __init__(self, flow):
        super().__init__()
        self.flow = flow

    def forward(self, x):
        return self.flow.log_prob(x)


class Sample(LogProb):
    """Samples as a function of noise; what draws the noise itself is exported as it is, too."""

    def forward(self, z):
        return self.flow.carry(z, inverse=True)


class Draw(LogProb):
    def forward(self, z):
        return self.flow.sample(z.shape[0])


LOAD = """
import sys, torch, jkoflow
program, x, package = sys.argv[1], torch.load(sys.argv[2]), sys.argv[3] == "aoti"
run = torch._inductor.aoti_load_package(program) if package else torch.export.load(program).module()
torch.save(run(x), sys.argv[4])
"""


def in_a_fresh_process(program, x, kind, tmp_path):
    torch.save(x, tmp_path / "x.pt")
    arguments = [program, tmp_path / "x.pt", kind, tmp_path / "y.pt"]
    subprocess.run([sys.executable, "-c", LOAD, *map(str, arguments)], check=True, capture_output=True)
    return torch.load(tmp_path / "y.pt")


@pytest.mark.parametrize("wrapped", [LogProb, Sample])
def test_export_runs_in_a_fresh_process(wrapped, tmp_path):
    model = wrapped(random_flow(blocks=1).requires_grad_(False).eval())
    dynamic = ({0: torch.export.Dim("rows", min=2)},)
    program = torch.export.export(model, (rows(4).float(),), dynamic_shapes=dynamic)
    torch.export.save(program, tmp_path / "program.pt2")
    x = rows(9).float()
    got = in_a_fresh_process(tmp_path / "program.pt2", x, "export", tmp_path)
    torch.testing.assert_close(got, model(x), rtol=1e-6, atol=1e-6)


@pytest.mark.skipif(shutil.which("c++") is None, reason="AOTInductor needs a C++ compiler")
@pytest.mark.parametrize("wrapped", [LogProb, Sample])
@pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning")  # torch's own call
def test_aot_inductor_packages_run_in_a_fresh_process(wrapped, tmp_path):
    model = wrapped(random_flow(blocks=1).requires_grad_(False).eval())
    dynamic = ({0: torch.export.Dim("rows", min=2)},)
    program = torch.export.export(model, (rows(4).float(),), dynamic_shapes=dynamic)
    package = str(tmp_path / "package.pt2")
    fast_to_compile = {"aot_inductor.compile_wrapper_opt_level": "O0"}
    torch._inductor.aoti_compile_and_package(program, package_path=package, inductor_configs=fast_to_compile)
    x = rows(9).float()
    torch.testing.assert_close(in_a_fresh_process(package, x, "aoti", tmp_path), model(x), rtol=1e-6, atol=1e-6)


def test_export_of_sampling():
    model = Draw(random_flow().requires_grad_(False).eval())
    program = torch.export.export(model, (rows(4).float(),)).module()
    torch.manual_seed(0)
    got = program(rows(4).float())
    torch.manual_seed(0)
    torch.testing.assert_close(got, model(rows(4).float()), rtol=1e-6, atol=1e-6)


# ---- Modules


def test_autocast_copies_and_inference_mode():
    flow, x = random_flow(), rows(4).float()
    expected = flow.log_prob(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(flow.log_prob(x), expected)
    expected.sum().backward()
    assert torch.equal(copy.deepcopy(flow).log_prob(x), expected)
    with torch.inference_mode():
        assert torch.equal(flow.log_prob(x), expected)


def test_a_flow_in_distributed_data_parallel(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        flow, x = random_flow(), rows(4).float()
        parallel = nn.parallel.DistributedDataParallel(LogProb(flow))
        parallel(x).sum().backward()
        got = [parameter.grad.clone() for parameter in flow.parameters()]
        flow.zero_grad()
        flow.log_prob(x).sum().backward()
        for value, parameter in zip(got, flow.parameters(), strict=True):
            torch.testing.assert_close(value, parameter.grad)
    finally:
        torch.distributed.destroy_process_group()

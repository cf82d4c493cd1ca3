"""Embedded Runge-Kutta methods, whose error estimate adapts the steps: one table for the reference and every kernel."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class EmbeddedMethod:
    r"""An explicit Runge-Kutta method with an error estimate, whose last stage is the first of the next step.

    .. math:: k_i = f(x + \Delta t \sum_{j<i} a_{ij} k_j, t + c_i \Delta t), \quad
              x_1 = x + \Delta t \sum_j a_{sj} k_j, \quad
              \mathrm{error} = \Delta t \sum_i e_i k_i

    Within a step, :math:`x(t + \theta \Delta t) = x + \Delta t \sum_i k_i \sum_k p_{ik} \theta^{k+1}`.

    Raises:
        ValueError: If the rows do not fit together or break consistency (sum a_i = c_i, sum e = 0, p at 1 = b).
    """

    order: int
    """Order of the solution that is carried on."""
    a: tuple[tuple[float, ...], ...]  # row i has i entries; the last row is b without its last entry, 0
    c: tuple[float, ...]
    error: tuple[float, ...]  # e
    dense: tuple[tuple[float, ...], ...]  # p, a row for each stage

    def __post_init__(self) -> None:
        stages = len(self.a)
        shapes = [len(row) for row in self.a] == list(range(stages)) and len(self.c) == len(self.error) == stages
        if not shapes or len(self.dense) != stages:
            raise ValueError(f"rows must have 0, 1, ..., {stages - 1} entries, got {self.a}")
        consistent = all(abs(sum(row) - c) < 1e-12 for row, c in zip(self.a, self.c, strict=True))
        dense = all(abs(sum(row) - b) < 1e-12 for row, b in zip(self.dense, self.b, strict=True))
        if not consistent or not dense or abs(sum(self.error)) > 1e-12:
            raise ValueError("method is not consistent: rows of a must sum to c, the error to 0, rows of dense to b")

    @property
    def stages(self) -> int:
        """Returns the number of stages; the last is evaluated for the next step, too."""
        return len(self.a)

    @property
    def b(self) -> tuple[float, ...]:
        """Returns the weights of the stages in the end of a step."""
        return (*self.a[-1], 0.0)


EMBEDDED: dict[str, EmbeddedMethod] = {
    # Bogacki and Shampine 1989, with the cubic through both ends
    "bosh3": EmbeddedMethod(
        3,
        ((), (1 / 2,), (0.0, 3 / 4), (2 / 9, 1 / 3, 4 / 9)),
        (0.0, 1 / 2, 3 / 4, 1.0),
        (5 / 72, -1 / 12, -1 / 9, 1 / 8),
        ((1.0, -4 / 3, 5 / 9), (0.0, 1.0, -2 / 3), (0.0, 4 / 3, -8 / 9), (0.0, -1.0, 1.0)),
    ),
    # Dormand and Prince 1980, with the quartic of Shampine 1986
    "dopri5": EmbeddedMethod(
        5,
        (
            (),
            (1 / 5,),
            (3 / 40, 9 / 40),
            (44 / 45, -56 / 15, 32 / 9),
            (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
            (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
            (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
        ),
        (0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0),
        (-71 / 57600, 0.0, 71 / 16695, -71 / 1920, 17253 / 339200, -22 / 525, 1 / 40),
        (
            (1.0, -8048581381 / 2820520608, 8663915743 / 2820520608, -12715105075 / 11282082432),
            (0.0, 0.0, 0.0, 0.0),
            (0.0, 131558114200 / 32700410799, -68118460800 / 10900136933, 87487479700 / 32700410799),
            (0.0, -1754552775 / 470086768, 14199869525 / 1410260304, -10690763975 / 1880347072),
            (0.0, 127303824393 / 49829197408, -318862633887 / 49829197408, 701980252875 / 199316789632),
            (0.0, -282668133 / 205662961, 2019193451 / 616988883, -1453857185 / 822651844),
            (0.0, 40617522 / 29380423, -110615467 / 29380423, 69997945 / 29380423),
        ),
    ),
    # Tsitouras 2011
    "tsit5": EmbeddedMethod(
        5,
        (
            (),
            (0.161,),
            (-0.008480655492356989, 0.335480655492357),
            (2.8971530571054935, -6.359448489975075, 4.3622954328695815),
            (5.325864828439257, -11.748883564062828, 7.4955393428898365, -0.09249506636175525),
            (5.86145544294642, -12.92096931784711, 8.159367898576159, -0.071584973281401, -0.028269050394068383),
            (
                0.09646076681806523,
                0.01,
                0.4798896504144996,
                1.379008574103742,
                -3.290069515436081,
                2.324710524099774,
            ),
        ),
        (0.0, 0.161, 0.327, 0.9, 0.9800255409045097, 1.0, 1.0),
        (
            0.00178001105222577714,
            0.0008164344596567469,
            -0.007880878010261995,
            0.1447110071732629,
            -0.5823571654525552,
            0.45808210592918697,
            -1 / 66,
        ),
        (
            (1.0, -2.763706197274826, 2.9132554618219126, -1.0530884977290216),
            (0.0, 0.13169999999999998, -0.2234, 0.1017),
            (0.0, 3.9302962368947516, -5.941033872131505, 2.490627285651253),
            (0.0, -12.411077166933676, 30.33818863028232, -16.548102889244902),
            (0.0, 37.50931341651104, -88.1789048947664, 47.37952196281928),
            (0.0, -27.896526289197286, 65.09189467479366, -34.87065786149661),
            (0.0, 1.5, -4.0, 2.5),
        ),
    ),
}

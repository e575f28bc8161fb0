"""Runge-Kutta methods of the literature, for tests: Hairer, Norsett and Wanner, Solving Ordinary Differential Equations
I, chapter II, and II, chapter IV; Bogacki and Shampine 1989."""

from echoc.membranes.trees.tableau import Tableau, tableau

EULER = tableau([[]], [1], [0], name="Euler")
IMPLICIT_EULER = tableau([[1]], [1], [1], name="implicit Euler")
MIDPOINT = tableau([[], ["1/2"]], [0, 1], [0, "1/2"], name="explicit midpoint")
IMPLICIT_MIDPOINT = tableau([["1/2"]], [1], ["1/2"], name="implicit midpoint")
TRAPEZOID = tableau([[0, 0], ["1/2", "1/2"]], ["1/2", "1/2"], [0, 1], name="trapezoidal rule")
HEUN = tableau([[], [1]], ["1/2", "1/2"], [0, 1], b_hat=[1, 0], name="Heun")
KUTTA = tableau([[], ["1/2"], [-1, 2]], ["1/6", "2/3", "1/6"], [0, "1/2", 1], name="Kutta's third order")
RK4 = tableau(
    [[], ["1/2"], [0, "1/2"], [0, 0, 1]], ["1/6", "1/3", "1/3", "1/6"], [0, "1/2", "1/2", 1], name="classical"
)
GAUSS2 = tableau(
    [["1/4", "1/4 - sqrt(3)/6"], ["1/4 + sqrt(3)/6", "1/4"]],
    ["1/2", "1/2"],
    ["1/2 - sqrt(3)/6", "(3 + sqrt(3))/6"],
    name="Gauss, 2 stages",
)
GAUSS3 = tableau(
    [
        ["5/36", "2/9 - sqrt(15)/15", "5/36 - sqrt(15)/30"],
        ["5/36 + sqrt(15)/24", "2/9", "5/36 - sqrt(15)/24"],
        ["5/36 + sqrt(15)/30", "2/9 + sqrt(15)/15", "5/36"],
    ],
    ["5/18", "4/9", "5/18"],
    ["1/2 - sqrt(15)/10", "1/2", "1/2 + sqrt(15)/10"],
    name="Gauss, 3 stages",
)
RADAU2 = tableau([["5/12", "-1/12"], ["3/4", "1/4"]], ["3/4", "1/4"], ["1/3", 1], name="Radau IIA, 2 stages")
SDIRK2 = tableau(
    [["1 - sqrt(2)/2"], ["sqrt(1/2)", "1 - sqrt(1/2)"]], ["sqrt(2)/2", "1 - sqrt(2)/2"], name="SDIRK, 2 stages"
)
BOGACKI_SHAMPINE = tableau(
    [[], ["1/2"], [0, "3/4"], ["2/9", "1/3", "4/9"]],
    ["2/9", "1/3", "4/9", 0],
    [0, "1/2", "3/4", 1],
    b_hat=["7/24", "1/4", "1/3", "1/8"],
    name="Bogacki-Shampine 3(2)",
)
FEHLBERG = tableau(
    [
        [],
        ["1/4"],
        ["3/32", "9/32"],
        ["1932/2197", "-7200/2197", "7296/2197"],
        ["439/216", -8, "3680/513", "-845/4104"],
        ["-8/27", 2, "-3544/2565", "1859/4104", "-11/40"],
    ],
    ["25/216", 0, "1408/2565", "2197/4104", "-1/5", 0],
    [0, "1/4", "3/8", "12/13", 1, "1/2"],
    b_hat=["16/135", 0, "6656/12825", "28561/56430", "-9/50", "2/55"],
    name="Fehlberg 4(5)",
)
DORMAND_PRINCE = tableau(
    [
        [],
        ["1/5"],
        ["3/40", "9/40"],
        ["44/45", "-56/15", "32/9"],
        ["19372/6561", "-25360/2187", "64448/6561", "-212/729"],
        ["9017/3168", "-355/33", "46732/5247", "49/176", "-5103/18656"],
        ["35/384", 0, "500/1113", "125/192", "-2187/6784", "11/84"],
    ],
    ["35/384", 0, "500/1113", "125/192", "-2187/6784", "11/84", 0],
    [0, "1/5", "3/10", "4/5", "8/9", 1, 1],
    b_hat=["5179/57600", 0, "7571/16695", "393/640", "-92097/339200", "187/2100", "1/40"],
    name="Dormand-Prince 5(4)",
)

# (method, order, order of the embedded one, explicit, symplectic)
KNOWN: tuple[tuple[Tableau, int, int | None, bool, bool], ...] = (
    (EULER, 1, None, True, False),
    (IMPLICIT_EULER, 1, None, False, False),
    (MIDPOINT, 2, None, True, False),
    (IMPLICIT_MIDPOINT, 2, None, False, True),
    (TRAPEZOID, 2, None, False, False),
    (HEUN, 2, 1, True, False),
    (KUTTA, 3, None, True, False),
    (RK4, 4, None, True, False),
    (GAUSS2, 4, None, False, True),
    (GAUSS3, 6, None, False, True),
    (RADAU2, 3, None, False, False),
    (SDIRK2, 2, None, False, False),
    (BOGACKI_SHAMPINE, 3, 2, True, False),
    (FEHLBERG, 4, 5, True, False),
    (DORMAND_PRINCE, 5, 4, True, False),
)

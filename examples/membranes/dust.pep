# Cantor dust, point by point: in each step, membrane `column` draws one of its two programs and so does membrane `row`.
# Either moves its coordinate two thirds of the way towards 0 or towards 1. What is ever reached has only the digits 0 and
# 2 in base 3; each coordinate has the Cantor distribution, with mean 1/2 and variance 1/8.
dust = {
    H = {square, column, row};
    structure = [square [column ]column [row ]row ]square;
    column = {
        var = {x};
        pr = {x / 3 -> 1|x};
        pr = {(x + 2) / 3 -> 1|x};
    };
    row = {
        var = {y};
        pr = {y / 3 -> 1|y};
        pr = {(y + 2) / 3 -> 1|y};
    };
}

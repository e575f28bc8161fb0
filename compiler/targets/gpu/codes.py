"""Instructions of CUDA that turn four codes of 8 bits to bf16, as Triton's inline assembly takes them."""

# e4m3, 2^8 times smaller: byte by byte to where sign, exponent and mantissa belong, then times 2^112.
_F8 = " ".join(
    f"prmt.b32 a, $2, 0, {select}; shr.b32 c, a, 4; and.b32 c, c, 0x07f007f0; "
    f"lop3.b32 a, a, 0x80008000, c, 0xea; fma.rn.bf16x2 ${out}, a, m, z;"
    for out, select in enumerate(("0x1404", "0x3424"))
)
WIDEN_F8 = f"{{ .reg .b32 a, c, m, z; mov.b32 m, 0x77807780; mov.b32 z, 0x80008000; {_F8} }}"

# int8: the low seven bits under 128, less 128 or, for negative ones, 256.
_I8 = " ".join(
    f"prmt.b32 a, $2, h, {select}; and.b32 c, a, 0xff80ff80; and.b32 a, a, 0xff7fff7f; fma.rn.bf16x2 ${out}, c, m, a;"
    for out, select in enumerate(("0x4140", "0x4342"))
)
WIDEN_I8 = f"{{ .reg .b32 a, c, h, m; mov.b32 h, 0x43434343; mov.b32 m, 0xbf80bf80; {_I8} }}"

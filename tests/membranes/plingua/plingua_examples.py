"""Small systems in P-Lingua, one of every kind, that the tests read, print, run and mutate."""

TRANSITION = """
// Doubles b in membrane 2 until f stops it, then spills everything into the skin.
@model<transition>

def main()
{
  @mu = [[]'2 []'3]'1;
  @ms(2) = b, f*2;
  @ms(1) += t;
  [b --> b*2]'2;
  (1) [f*2 --> f]'2;
  (2) [f --> @d]'2;
  [t []'3 --> t [w]'3]'1;
}
"""

DIVISION = """
/* Writes all words of n bits into as many membranes. */
@model<membrane_division>

bits = 3;

def main()
{
  @mu = [[]'2]'1;
  @ms(2) += x{i} : 1 <= i <= bits;
  @ms(1) = c{0};
  [x{i}]'2 --> +[t{i}] -[f{i}] : 1 <= i <= bits;
  { +[t{i}]'2 --> [t{i}]'2; -[f{i}]'2 --> [f{i}]'2; } : 1 <= i <= 0;
  +[r]'2 --> r []'2;
  [c{k} --> c{k+1}]'1 : 0 <= k < 2*bits;
  c{2*bits} +[]'2 --> [stop]'2;
  [stop]'2 --> out;
}
"""

TISSUE = """
@model<tissue_division>

def main()
{
  @mu = [[]'1 []'2 []'2]'0;
  @ms(0) = s, r;
  @ms(1) = a*3;
  @ms(2) += b;
  [a]'1 <--> [s*2]'0;
  [s]'1 <--> [b]'2;
  [b]'1 <--> [#]'0;
  [s]'2 --> [t]'2 [u]'2;
}
"""

SEPARATION = """
@model<tissue_separation>

def main()
{
  @mu = [[]'1 []'2]'0;
  call alphabets(2);
  @ms(1) = S, a{1}, ap{1}*2, a{2};
  @ms(2) = q;
  [S]'1 --> []'1 []'1;
  [ap{i}]'1 <--> [q]'2 : 1 <= i <= 2;
}

def alphabets(n)
{
  @ms(1) += a{i} : 1 <= i <= n;
  @ms(1) += S, q;
  @ms(2) += ap{i} : 1 <= i <= n;
}
"""

POPULATION = """
@model<probabilistic>

E = 2;

def main()
{
  @mu = []'p;
  @mu(p) += [[[]'1]'0]'{100+k},{100+k} : 1 <= k <= E;
  @ms(1) = X*10;
  @ms(0,{100+k}) += F*q{k} : 1 <= k <= E;
  [X]'1 --> +[X*2]'1 :: grow;
  [X]'1 --> +[X]'1 :: 1 - grow;
  +[X]'1 --> X []'1 :: 1;
  [X --> X]'0 :: 1;
  [F --> #]'0,{101} :: 1;
  [F --> F, G]'0,{102} :: 1;
  [X]'0 --> X []'0 :: 0;
  [[Y]'{100+k} []'{100+r}]'p --> [[]'{100+k} [Y]'{100+r}]'p :: move{k,r} : 1 <= k <= E, 1 <= r <= E, k <> r;
  [[Y]'{100+k}]'p --> [[Y]'{100+k}]'p :: 0.75 : 1 <= k <= E;
}

grow = 0.3;
q{1} = 5;
q{2} = 7;
move{1,2} = 0.25;
move{2,1} = 0.25;
"""

SPIKING = """
@model<spiking_psystems>

def main()
{
  @mu = a1, a2, out;
  @mu += n{i} : 1 <= i <= 2;
  @ms(a1) = a*2;
  @ms(a2) = a;
  @marcs = (a1,a2), (a2,a1);
  @marcs += (a1,out), (a2,out);
  @marcs += (n{1},n{2});
  @mout = out;
  [a*2 --> a]'a1 "aa(aa)*";
  [a --> #]'a1;
  [a --> a]'a2 :: 1;
  [a --> a]'out "a(aa|a)*" :: 2;
  [a*(2^i) --> a]'n{i} : 1 <= i <= 2;
}
"""

STOCHASTIC = """
@model<stochastic>

def main()
{
  @mu = [[]'nucleus]'cell;
  @ms(cell) = X*100;
  [X --> #]'cell :: 0.1;
  [X*2 --> Y]'cell :: 0.005;
  X []'nucleus --> [X]'nucleus :: 2;
}
"""

SYMPORT = """
@model<symport_antiport>

def main()
{
  @mu = [[]'2]'1;
  @ms(1) = a*4;
  @ms(2) = b*2, c;
  a*2 [b]'2 --> b [a*2]'2;
  [c]'2 --> c []'2;
}
"""

OWN_MODEL = """
!evolve { ?[u --> v]'h; (?) ?[u --> v]'h; }
!swap { [u]'h1 <-> [v]'h2; }
!change { ?1[a]'h --> ?1[]'h b; [go]'h --> +[]'h; }

@model(mine) = evolve, @2{swap}, @1{change};
@model<mine>
@priority = "weak";
@environment = "finite";

def main()
{
  @mu = [+[]'2 []'3]'1;
  @ms(2) = x*5, go;
  @ms(3) = y*5;
  (2) +[x --> z]'2;
  (1) +[x, x --> w]'2;
  [x]'2 <-> [y]'3;
  +[z]'2 --> +[]'2 z;
  [go]'2 --> +[]'2;
}
"""

GUARDED = """
@model<transition>

def main()
{
  @mu = [[]'2]'1;
  @ms(2) = a*5, b;
  @guard {>=+a*2} && ({<b*3} || {<>c}) ? (1) [a --> d]'2;
  @guard ({=+b} && {>d*0}) || {<=+c*2} ? [b []'3 --> @d []'3]'2;
  @mu(2) += []'3;
}
"""

EVERY = {
    "guarded": GUARDED,
    "transition": TRANSITION,
    "division": DIVISION,
    "tissue": TISSUE,
    "separation": SEPARATION,
    "population": POPULATION,
    "spiking": SPIKING,
    "stochastic": STOCHASTIC,
    "symport": SYMPORT,
    "own": OWN_MODEL,
}

#!/usr/bin/env python3
"""Makes a library of a module of PTX: each kernel becomes a C function that does what one thread does (see lanes.h).

    ptx.py module.ptx module.so

Takes what LLVM writes for the kernels of CubeCL 0.11, and refuses what it does not know by name.
"""
import hashlib, os, pathlib, re, subprocess, sys

from arithmetic import COMPARISONS, Arithmetic
from memory import SPACES, Memory
from operands import BITS, Unknown, ctype, is_float
from together import Together


# What may stand behind an instruction's name: anything else could mean something that is done nowhere here.
MODIFIERS = set(BITS) | set(COMPARISONS) | {how + "u" for how in COMPARISONS} | set(SPACES)
MODIFIERS |= set("num nan and or xor rn rm rp rz rzi rni rmi rpi rna ftz approx full sat cc lo hi wide NaN to".split())
MODIFIERS |= set("uni sync aligned warp cta bfly idx up down l r wrap clamp".split())
MODIFIERS |= set("nc volatile relaxed weak gpu v2 v4 add".split())
MODIFIERS |= set("row col a b c d load store mma m8n8 x1 x2 x4 trans noftz".split())


def is_known(modifier):
    return modifier in MODIFIERS or re.match(r"m\d+n\d+k\d+$|L[12]::|shared::cta$", modifier)


class Kernel(Arithmetic, Memory, Together):
    """One entry of a module: what its body says, as C."""

    def instruction(self, text):
        guard = re.match(r"@(!?)(%\w+)\s+(.*)", text, re.S)
        if guard:
            self.width(guard[2])
            self.lines.append(f"    if ({guard[1]}{self.variable(guard[2])}) {{")
            self.instruction(guard[3])
            self.lines.append("    }")
            return
        opcode, _, rest = text.partition(" ")
        operands = [part.strip() for part in re.findall(r"(?:\{[^}]*\}|\[[^\]]*\]|[^,{\[])+", rest)]
        # A predicate beside the result is written with a bar.
        operands = [half for part in operands for half in ([part] if part[0] in "{[" else part.split("|"))]
        name, *parts = opcode.split(".")
        handler = getattr(self, "do_" + name, None)
        if handler is None or not all(map(is_known, parts)):
            raise Unknown(f"instruction {text}")
        self.text = text
        handler(parts, operands)

    # Where to go on

    def do_bra(self, parts, ops):
        self.emit(f"goto {self.label(ops[0])};")

    @staticmethod
    def label(text):
        return text.replace("$", "l_")

    def do_ret(self, parts, ops):
        self.emit("return;")

    # As a whole

    def body(self, text):
        # Local names of blocks that inline assembly opens are those of the kernel: LLVM numbers them.
        for statement in re.split(r";|(?<=:)(?=\s)|(?=[{}]\s)|(?<=[{}])(?=\s)", text):
            statement = " ".join(statement.split())
            if not statement or statement in "{}":
                continue
            if statement.endswith(":"):
                self.lines.append(f"{self.label(statement[:-1])}:;")
            elif statement.startswith(".reg"):
                kind, names = re.match(r"\.reg \.(\w+) (.*)", statement).groups()
                for name in names.split(","):
                    name = name.strip()
                    if "<" in name:
                        self.families[name.split("<")[0]] = BITS[kind]
                    else:
                        self.registers[name] = BITS[kind]
            elif statement.startswith((".local", ".shared", ".global", ".const")):
                self.declare(statement)
            elif statement.startswith(".pragma") or statement.startswith(".loc") or statement.startswith(".file"):
                continue
            elif statement.startswith("."):
                raise Unknown(f"directive {statement}")
            else:
                self.instruction(statement)

    def declare(self, statement):
        space, symbol, size, values = declaration(statement)
        if space == "shared":
            raise Unknown("shared memory declared within a kernel")
        self.variables[symbol] = (space, None)
        self.locals.append(f"    uint8_t {symbol}[{size}] __attribute__((aligned(16)));")

    def c(self, static_shared):
        if len(self.parameters) > 256:
            raise Unknown("number of parameters")
        variables = [f"    uint{width}_t {self.variable(name)} = 0;" for name, width in sorted(self.registers.items())]
        offsets = ", ".join(f"{{ {at}, {size} }}" for at, size in self.parameters.values()) or "{ 0, 0 }"
        body = "\n".join([*variables, *self.locals, *self.lines]).replace("DYNAMIC", str(static_shared))
        return (
            f"static void thread_{self.name}(struct lane *L, const uint8_t *P) {{\n    uint32_t carry = 0;\n{body}\n}}\n"
            f"const struct kernel soft_{self.name} = {{ \"{self.name}\", thread_{self.name}, {static_shared}, {int(self.meets)}, {len(self.parameters)}, {{ {offsets} }} }};\n"
        )


def declaration(statement):
    """`.shared .align 16 .b8 name[64]` in its parts; `size` is None of what is as large as the launch says."""
    match = re.match(r"(?:\.(?:visible|extern|weak|common)\s+)*\.(\w+)\s+(?:\.align\s+(\d+)\s+)?\.(\w+)\s+([\w$]+)\s*(\[(\d*)\])?(?:\s*=\s*(.*))?$", statement, re.S)
    if not match:
        raise Unknown(f"directive {statement}")
    space, _, kind, symbol, brackets, count, values = match.groups()
    size = None if brackets and not count else BITS[kind] // 8 * int(count or 1)
    return space, symbol, size, (kind, values)


def translate(ptx):
    ptx = re.sub(r"//[^\n]*|/\*.*?\*/", "", ptx, flags=re.S)
    out, shared, variables = ['#include "lanes.h"'], 0, {}
    entry = re.compile(r"(?:\.visible\s+)?\.entry\s+([\w$]+)\s*\((.*?)\)([^{]*)\{", re.S)
    at = 0
    found = [match for match in entry.finditer(ptx)]
    head = ptx[: found[0].start()] if found else ptx
    for statement in head.split(";"):
        statement = " ".join(re.sub(r"\.(version|target|address_size)\b[^\n]*", "", statement).split())
        if not statement:
            continue
        space, symbol, size, (kind, values) = declaration(statement)
        if space == "shared":
            variables[symbol] = ("shared", shared if size is not None else None)
            shared = (shared + (size or 0) + 127) // 128 * 128
        else:
            variables[symbol] = (space, None)
            initial = f" = {values}" if values else ""
            out.append(f"static {ctype(kind) if not is_float(kind) else f'uint{BITS[kind]}_t'} {symbol}[{size // (BITS[kind] // 8)}] __attribute__((aligned(16))){initial};")
    for match in found:
        depth, end = 1, match.end()
        while depth:
            depth += {"{": 1, "}": -1}.get(ptx[end], 0)
            end += 1
        parameters = []
        for parameter in filter(None, (part.strip() for part in match[2].split(","))):
            kind, symbol, _, count = re.match(r"\.param\s+(?:\.align\s+\d+\s+)?\.(\w+)(?:\s+\.ptr(?:\s+\.\w+(?:\s+\d+)?)*)?\s+([\w$]+)(\[(\d+)\])?", parameter).groups()
            parameters.append((kind, int(count or 1), symbol))
        kernel = Kernel(match[1], parameters, variables)
        kernel.body(ptx[match.end() : end - 1])
        out.append(kernel.c(shared))
    return "\n".join(out) + "\n"


def compile_to(library, text):
    """Compiles, unless the same text was compiled before: libraries are kept beside the folder of this one."""
    here = pathlib.Path(__file__).resolve().parent
    key = hashlib.sha256(text.encode() + (here / "lanes.h").read_bytes()).hexdigest()[:24]
    kept = library.parent.parent / "compiled" / key
    if not kept.with_suffix(".so").exists():
        kept.parent.mkdir(exist_ok=True)
        kept.with_suffix(".c").write_text(text)
        fresh = f"{kept}.{os.getpid()}"
        flags = ["-O1", "-march=native", "-ffp-contract=off", "-fwrapv", "-fno-strict-aliasing", "-w", "-shared", "-fPIC", f"-I{here}"]
        subprocess.run(["cc", *flags, "-o", fresh, kept.with_suffix(".c"), "-lm"], check=True)
        os.replace(fresh, kept.with_suffix(".so"))
    fresh = f"{library}.{os.getpid()}"
    os.symlink(kept.with_suffix(".so"), fresh)
    os.replace(fresh, library)


if __name__ == "__main__":
    source, target = sys.argv[1:]
    try:
        compile_to(pathlib.Path(target), translate(open(source).read()))
    except Unknown as unknown:
        sys.exit(f"{source}: unknown {unknown}")

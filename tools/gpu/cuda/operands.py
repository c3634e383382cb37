"""What instructions of PTX read and write: registers, constants, addresses, as C. Registers are unsigned integers of their width, whose bits an
instruction reads as its own type says.
"""
import re

BITS = {"pred": 8, "b8": 8, "b16": 16, "b32": 32, "b64": 64, "f16": 16, "bf16": 16, "f32": 32, "tf32": 32, "f64": 64, "f16x2": 32, "bf16x2": 32}
BITS |= {sign + str(width): width for sign in "us" for width in (8, 16, 32, 64)}
SPECIAL = {f"%{name}.{axis}": f"L->{name}[{i}]" for name in ("tid", "ntid", "ctaid", "nctaid") for i, axis in enumerate("xyz")}
SPECIAL |= {"%laneid": "(L->index & 31)", "%warpid": "(L->index >> 5)", "%lanemask_lt": "((1u << (L->index & 31)) - 1)"}


class Unknown(Exception):
    """An instruction or directive that has no C here."""


def ctype(kind):
    """The C type in which an instruction of this kind computes."""
    if kind in ("f32", "tf32", "f16", "bf16"):
        return "float"
    if kind == "f64":
        return "double"
    if kind == "pred":
        return "uint8_t"
    return ("int" if kind[0] == "s" else "uint") + str(BITS[kind]) + "_t"


def is_float(kind):
    return kind in ("f16", "bf16", "f32", "f64", "tf32")


class Operands:
    """The registers of a kernel, what it has in memory, and the C that was written so far."""

    def __init__(self, name, parameters, variables):
        self.name, self.variables = name, dict(variables)
        self.registers, self.families, self.lines, self.meets, self.site = {}, {}, [], False, 0
        self.parameters, at = {}, 0
        for kind, count, symbol in parameters:
            size = BITS[kind] // 8 * count
            align = min(size, 16) if count == 1 else 16
            at = (at + align - 1) // align * align
            self.parameters[symbol] = (at, size)
            at += size
        self.locals = []

    def width(self, register):
        if register in self.registers:
            return self.registers[register]
        family = self.families.get(re.match(r"%[a-zA-Z_$]+", register)[0])
        if family is None:
            raise Unknown(f"register {register}")
        self.registers[register] = family
        return family

    @staticmethod
    def variable(register):
        return "v_" + register[1:]

    def constant(self, text, kind):
        if text[:2] in ("0f", "0F"):
            return f"f32_of(0x{text[2:]}u)" if is_float(kind) else f"0x{text[2:]}u"
        if text[:2] in ("0d", "0D"):
            return f"f64_of(0x{text[2:]}ull)" if is_float(kind) else f"0x{text[2:]}ull"
        if text[:2] == "0x" and kind == "bf16":
            return f"bf16_of({text})"
        if text[:2] == "0x" and kind == "f16":
            return f"f16_of({text})"
        return f"(({ctype(kind)}){text.rstrip('U')}ll)"

    def read(self, text, kind):
        """An operand, as a value of the kind."""
        text = text.strip()
        if text in SPECIAL:
            return f"(({ctype(kind)}){SPECIAL[text]})"
        if text.startswith("%"):
            self.width(text)
            name = self.variable(text)
            if is_float(kind):
                return f"{kind if kind != 'tf32' else 'f32'}_of({name})"
            return f"(({ctype(kind)}){name})"
        if re.match(r"-?(0[xXfFdD])?[0-9]", text):
            return self.constant(text, kind)
        return f"(({ctype(kind)}){self.address_of(text)})"

    def bits(self, text, kind):
        """An operand as the bits that are stored of it."""
        value = self.read(text, kind)
        return f"{kind}_bits({value})" if is_float(kind) else value

    def write(self, text, kind, value):
        text = text.strip()
        if text == "_":
            self.emit(f"(void)({value});")
            return
        self.width(text)
        if is_float(kind):
            value = f"{kind if kind != 'tf32' else 'f32'}_bits({value})"
        elif kind != "pred":
            value = f"({ctype(kind)})({value})"
        self.emit(f"{self.variable(text)} = {value};")

    def address_of(self, symbol):
        if symbol in self.parameters:
            return f"(uint64_t)(P + {self.parameters[symbol][0]})"
        if symbol in self.variables:
            space, at = self.variables[symbol]
            return f"(uint64_t)({symbol})" if space != "shared" else f"{at}" if at is not None else "DYNAMIC"
        raise Unknown(f"symbol {symbol}")

    @staticmethod
    def registers_of(text):
        """The registers of a vector in braces, or the one that stands alone."""
        return [part.strip() for part in text.strip("{} ").split(",")]

    @staticmethod
    def base_and_offset(text):
        """The parts of an address in brackets."""
        base, _, offset = re.match(r"\[\s*([^\s+\]]+)(\s*\+\s*(-?\w+))?\s*\]", text).groups()
        return base, offset or "0"

    def memory(self, text, space, size):
        """A pointer to what an operand in brackets names."""
        base, offset = self.base_and_offset(text)
        if base in self.parameters and space == "param":
            return f"(P + {self.parameters[base][0]} + {offset})"
        if base in self.variables and space in ("", "global", "const", "local") and self.variables[base][0] != "shared":
            return f"((uint8_t *){base} + {offset})"
        address = f"{self.read(base, 'u64')} + ({offset})"
        if space == "shared" or base in self.variables and self.variables[base][0] == "shared":
            return f"in_shared(L, (uint32_t)({address}), {size})"
        if space in ("param", "local"):
            return f"((uint8_t *)({address}))"
        return f"in_memory(L, {address}, {size})"

    def emit(self, line):
        self.lines.append("    " + line)

    def unknown(self):
        raise Unknown(f"instruction {self.text}")

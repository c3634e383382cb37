"""What PTX reads from memory and writes to it, as C."""
from operands import BITS, Operands, ctype, is_float

SPACES = ("global", "shared", "local", "param", "const")


def space_of(parts):
    """The memory that an instruction names; "" if its addresses say it themselves."""
    return next((part.split("::")[0] for part in parts if part.split("::")[0] in SPACES), "")


class Memory(Operands):
    def do_ld(self, parts, ops):
        space = space_of(parts)
        kind = parts[-1]
        to = self.registers_of(ops[0])
        size = BITS[kind] // 8
        self.emit("{")
        self.emit(f"const uint8_t *at = {self.memory(ops[1], space, size * len(to))};")
        for i, register in enumerate(to):
            integer = kind if not is_float(kind) else f"b{BITS[kind]}"
            self.write(register, integer, f"AT({ctype(integer)}, at + {i * size})") if register != "_" else None
        self.emit("}")

    def do_st(self, parts, ops):
        space = space_of(parts)
        kind = parts[-1]
        of = self.registers_of(ops[1])
        size = BITS[kind] // 8
        self.emit("{")
        self.emit(f"uint8_t *at = {self.memory(ops[0], space, size * len(of))};")
        for i, register in enumerate(of):
            self.emit(f"AT({ctype('b%d' % BITS[kind])}, at + {i * size}) = {self.bits(register, kind)};")
        self.emit("}")

    def do_atom(self, parts, ops):
        kind = parts[-1]
        if "add" not in parts:
            self.unknown()
        to, at, value = ops
        old = f"{kind}_of(old)" if is_float(kind) else f"({ctype(kind)})old"
        new = f"{old} + {self.read(value, kind)}"
        bits = f"uint{BITS[kind]}_t"
        new = f"{kind}_bits({new})" if is_float(kind) else f"({bits})({new})"
        self.emit(f"{{ {bits} *at = ({bits} *){self.memory(at, space_of(parts), BITS[kind] // 8)}, old = __atomic_load_n(at, __ATOMIC_SEQ_CST), new;")
        self.emit(f"do new = {new}; while (!__atomic_compare_exchange_n(at, &old, new, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST));")
        self.write(to, f"b{BITS[kind]}", "old")
        self.emit("}")

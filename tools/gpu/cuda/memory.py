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
        to = [part.strip() for part in ops[0].strip("{}").split(",")]
        size = BITS[kind] // 8
        self.emit("{")
        self.emit(f"const uint8_t *at = {self.memory(ops[1], space, size * len(to))};")
        for i, register in enumerate(to):
            integer = kind if not is_float(kind) else f"b{BITS[kind]}"
            self.write(register, integer, f"AT({ctype(integer)}, at + {i * size})") if register != "_" else None
        self.emit("}")

    do_ldu = do_ld

    def do_st(self, parts, ops):
        space = space_of(parts)
        kind = parts[-1]
        of = [part.strip() for part in ops[1].strip("{}").split(",")]
        size = BITS[kind] // 8
        self.emit("{")
        self.emit(f"uint8_t *at = {self.memory(ops[0], space, size * len(of))};")
        for i, register in enumerate(of):
            self.emit(f"AT({ctype('b%d' % BITS[kind])}, at + {i * size}) = {self.bits(register, kind)};")
        self.emit("}")

    def do_prefetch(self, parts, ops):
        pass

    def do_membar(self, parts, ops):
        self.emit("__atomic_thread_fence(__ATOMIC_SEQ_CST);")

    do_fence = do_membar

    def do_atom(self, parts, ops, result=True):
        space = space_of(parts)
        kind = parts[-1]
        how = next(part for part in parts if part in ("add", "exch", "cas", "min", "max", "and", "or", "xor", "inc", "dec"))
        to, at, *values = ops if result else ["_"] + ops
        pointer = self.memory(at, space, BITS[kind] // 8)
        values = [self.read(value, kind) for value in values]
        bits = f"uint{BITS[kind]}_t"
        self.emit(f"{{ {bits} *at = ({bits} *){pointer}, old = __atomic_load_n(at, __ATOMIC_SEQ_CST), new;")
        old = f"{kind}_of(old)" if is_float(kind) else f"({ctype(kind)})old"
        new = {
            "add": f"{old} + {values[0]}", "exch": values[0], "and": f"{old} & {values[0]}", "or": f"{old} | {values[0]}", "xor": f"{old} ^ {values[0]}",
            "min": f"{old} < {values[0]} ? {old} : {values[0]}", "max": f"{old} > {values[0]} ? {old} : {values[0]}",
            "cas": f"{old} == {values[0]} ? {values[-1]} : {old}",
        }[how]
        new = f"{kind}_bits({new})" if is_float(kind) else f"({bits})({new})"
        self.emit(f"do new = {new}; while (!__atomic_compare_exchange_n(at, &old, new, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST));")
        self.write(to, f"b{BITS[kind]}", "old")
        self.emit("}")

    def do_red(self, parts, ops):
        self.do_atom(parts, ops, result=False)

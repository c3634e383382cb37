"""Arithmetic of PTX, on bits and on values, as C."""
from operands import BITS, Operands, ctype, is_float

COMPARISONS = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">=", "lo": "<", "ls": "<=", "hi": ">", "hs": ">="}
FUNCTIONS = {"sqrt": "sqrt", "rsqrt": "reciprocal_root", "rcp": "reciprocal", "ex2": "exp2", "lg2": "log2", "sin": "sin", "cos": "cos", "tanh": "tanh"}


class Arithmetic(Operands):
    def computed(self, parts, value, operation, operands):
        """A float as its instruction rounds it: to nearest, or by a function for the other directions; and cut to [0, 1] if that is asked for."""
        direction = next((part for part in parts if part in ("rm", "rp", "rz")), None)
        if direction and parts[-1] != "f32":
            self.unknown()
        if direction:
            value = f"{operation}_{direction}({', '.join(operands)})"
        return f"saturated({value})" if "sat" in parts else value

    def binary(self, parts, ops, symbol):
        kind = parts[-1]
        if is_float(kind):
            operands = [self.read(op, kind) for op in ops[1:]]
            operation = {"+": "sum", "-": "difference", "*": "product"}[symbol]
            return self.write(ops[0], kind, self.computed(parts, f" {symbol} ".join(operands), operation, operands))
        if kind in ("f16x2", "bf16x2"):
            return self.pairs(kind, ops, lambda a, b: f"{a} {symbol} {b}")
        self.write(ops[0], kind, f"{self.read(ops[1], kind)} {symbol} {self.read(ops[2], kind)}")

    def pairs(self, kind, ops, combine):
        half = kind[:-2]
        low = [f"{half}_of({self.read(op, 'b32')} & 0xffff)" for op in ops[1:]]
        high = [f"{half}_of({self.read(op, 'b32')} >> 16)" for op in ops[1:]]
        self.write(ops[0], "b32", f"{half}_bits({combine(*low)}) | (uint32_t){half}_bits({combine(*high)}) << 16")

    def unsigned(self, kind):
        return "u" + kind[1:] if kind[0] == "s" else kind

    def do_add(self, parts, ops):
        if "cc" in parts:
            return self.carrying(parts, ops, f"(uint64_t){self.read(ops[1], 'u32')} + {self.read(ops[2], 'u32')}")
        if "sat" in parts and not is_float(parts[-1]):
            self.unknown()
        self.binary(parts[:-1] + [self.unsigned(parts[-1])], ops, "+")

    def carrying(self, parts, ops, value):
        """A sum of 32 bits whose carry goes into the next one that asks for it; `value` is computed in 64 bits."""
        if BITS[parts[-1]] != 32:
            self.unknown()
        self.emit(f"{{ uint64_t sum = {value};")
        if "cc" in parts:
            self.emit("carry = sum >> 32 & 1;")
        self.write(ops[0], "b32", "sum")
        self.emit("}")

    def product_of(self, parts, ops):
        return self.high("u32", ops) if "hi" in parts else f"(uint32_t)({self.read(ops[1], 'u32')} * {self.read(ops[2], 'u32')})"

    def do_madc(self, parts, ops):
        self.carrying(parts, ops, f"(uint64_t){self.product_of(parts, ops)} + {self.read(ops[3], 'u32')} + carry")

    def do_sub(self, parts, ops):
        if "cc" in parts:
            self.unknown()
        self.binary(parts[:-1] + [self.unsigned(parts[-1])], ops, "-")

    def do_mul(self, parts, ops):
        kind = parts[-1]
        if parts[0] == "wide":
            wide = kind[0] + str(BITS[kind] * 2)
            self.write(ops[0], wide, f"({ctype(wide)}){self.read(ops[1], kind)} * ({ctype(wide)}){self.read(ops[2], kind)}")
        elif parts[0] == "hi":
            self.write(ops[0], kind, self.high(kind, ops))
        else:
            self.binary(parts[:-1] + [self.unsigned(kind)], ops, "*" if BITS[kind] != 16 or is_float(kind) else "* 1u *")

    def high(self, kind, ops):
        wide = ("" if kind[0] == "s" else "unsigned ") + "__int128"
        return f"({ctype(kind)})((({wide}){self.read(ops[1], kind)} * ({wide}){self.read(ops[2], kind)}) >> {BITS[kind]})"

    def do_mad(self, parts, ops):
        kind = parts[-1]
        if "cc" in parts:
            return self.carrying(parts, ops, f"(uint64_t){self.product_of(parts, ops)} + {self.read(ops[3], 'u32')}")
        if is_float(kind):
            return self.do_fma(parts, ops)
        if parts[0] == "wide":
            wide = kind[0] + str(BITS[kind] * 2)
            product = f"({ctype(wide)}){self.read(ops[1], kind)} * ({ctype(wide)}){self.read(ops[2], kind)}"
            return self.write(ops[0], wide, f"{product} + {self.read(ops[3], wide)}")
        kind = self.unsigned(kind)
        product = self.high(kind, ops) if parts[0] == "hi" else f"{self.read(ops[1], kind)} * {self.read(ops[2], kind)}"
        self.write(ops[0], kind, f"{product} + {self.read(ops[3], kind)}")

    def do_fma(self, parts, ops):
        kind = parts[-1]
        if kind in ("f16x2", "bf16x2"):
            self.to_nearest(parts)
            return self.pairs(kind, ops, lambda a, b, c: f"(float)fma({a}, {b}, {c})")
        a, b, c = (self.read(op, kind) for op in ops[1:])
        call = {"f32": "fmaf", "f64": "fma", "f16": "(float)fma", "bf16": "(float)fma"}[kind]
        self.write(ops[0], kind, self.computed(parts, f"{call}({a}, {b}, {c})", "fused", [a, b, c]))

    def do_div(self, parts, ops):
        kind = parts[-1]
        if is_float(kind):
            self.to_nearest(parts)
        a, b = self.read(ops[1], kind), self.read(ops[2], kind)
        self.write(ops[0], kind, f"{a} / {b}" if is_float(kind) else f"{b} ? {a} / {b} : -1")

    def do_rem(self, parts, ops):
        a, b = self.read(ops[1], parts[-1]), self.read(ops[2], parts[-1])
        self.write(ops[0], parts[-1], f"{b} ? {a} % {b} : {a}")

    def extreme(self, parts, ops, which):
        kind = parts[-1]
        if kind in ("f16x2", "bf16x2"):
            return self.pairs(kind, ops, lambda a, b: f"{which}_of_floats({a}, {b}, {int('NaN' in parts)})")
        a, b = self.read(ops[1], kind), self.read(ops[2], kind)
        if kind == "f64":
            value = f"{which}_of_doubles({a}, {b}, {int('NaN' in parts)})"
        elif is_float(kind):
            value = f"{which}_of_floats({a}, {b}, {int('NaN' in parts)})"
        else:
            value = f"{a} {'<' if which == 'min' else '>'} {b} ? {a} : {b}"
        self.write(ops[0], kind, value)

    def do_min(self, parts, ops):
        self.extreme(parts, ops, "min")

    def do_max(self, parts, ops):
        self.extreme(parts, ops, "max")

    def do_abs(self, parts, ops):
        kind = parts[-1]
        if kind in ("f16x2", "bf16x2"):
            return self.write(ops[0], "b32", f"{self.read(ops[1], 'b32')} & 0x7fff7fffu")
        if is_float(kind):
            return self.write(ops[0], "b%d" % BITS[kind], f"{self.read(ops[1], 'b%d' % BITS[kind])} & {hex((1 << BITS[kind] - 1) - 1)}ull")
        a = self.read(ops[1], kind)
        self.write(ops[0], kind, f"{a} < 0 ? -{a} : {a}")

    def do_neg(self, parts, ops):
        kind = parts[-1]
        if kind in ("f16x2", "bf16x2"):
            return self.write(ops[0], "b32", f"{self.read(ops[1], 'b32')} ^ 0x80008000u")
        if is_float(kind):
            return self.write(ops[0], "b%d" % BITS[kind], f"{self.read(ops[1], 'b%d' % BITS[kind])} ^ {hex(1 << BITS[kind] - 1)}ull")
        self.write(ops[0], kind, f"0 - {self.read(ops[1], self.unsigned(kind))}")

    def logical(self, parts, ops, symbol):
        kind = parts[-1]
        self.write(ops[0], kind, f"{self.read(ops[1], kind)} {symbol} {self.read(ops[2], kind)}")

    def do_and(self, parts, ops):
        self.logical(parts, ops, "&")

    def do_or(self, parts, ops):
        self.logical(parts, ops, "|")

    def do_xor(self, parts, ops):
        self.logical(parts, ops, "^")

    def do_not(self, parts, ops):
        a = self.read(ops[1], parts[-1])
        self.write(ops[0], parts[-1], f"!{a}" if parts[-1] == "pred" else f"~{a}")

    def do_shl(self, parts, ops):
        kind = parts[-1]
        by = self.read(ops[2], "u32")
        self.write(ops[0], kind, f"{by} < {BITS[kind]} ? ({ctype(kind)})({self.read(ops[1], kind)} << {by}) : 0")

    def do_shr(self, parts, ops):
        kind = parts[-1]
        by, a = self.read(ops[2], "u32"), self.read(ops[1], kind)
        beyond = f"({a} < 0 ? -1 : 0)" if kind[0] == "s" else "0"
        self.write(ops[0], kind, f"{by} < {BITS[kind]} ? {a} >> {by} : {beyond}")

    def do_shf(self, parts, ops):
        low, high, by = (self.read(op, "u32") for op in ops[1:])
        by = f"({by} & 31)" if "wrap" in parts else f"({by} > 32 ? 32 : {by})"
        both = f"((uint64_t){high} << 32 | {low})"
        self.write(ops[0], "b32", f"({both} << {by}) >> 32" if parts[0] == "l" else f"{both} >> {by}")

    def do_bfe(self, parts, ops):
        if parts != ["u32"]:
            self.unknown()
        self.write(ops[0], "u32", f"bits_of_u32({', '.join(self.read(op, 'u32') for op in ops[1:])})")

    def do_prmt(self, parts, ops):
        if len(parts) > 1:
            self.unknown()
        self.write(ops[0], "b32", f"permuted({', '.join(self.read(op, 'b32') for op in ops[1:])})")

    def do_setp(self, parts, ops):
        how, kind = parts[0], parts[-1]
        first, *rest = ops
        second = rest.pop(0) if len(rest) > 2 and len(parts) == 2 or len(rest) > 3 else None
        a, b = self.read(rest[0], kind), self.read(rest[1], kind)
        if how in COMPARISONS:
            value = f"{a} {COMPARISONS[how]} {b}"
            if how == "ne" and is_float(kind):
                value = f"({a} < {b} || {a} > {b})"
        elif how == "num":
            value = f"!(__builtin_isnan({a}) || __builtin_isnan({b}))"
        elif how == "nan":
            value = f"(__builtin_isnan({a}) || __builtin_isnan({b}))"
        elif how[-1] == "u" and how[:-1] in COMPARISONS:
            opposite = {"eq": "ne", "ne": "eq", "lt": "ge", "le": "gt", "gt": "le", "ge": "lt"}[how[:-1]]
            value = f"!({a} {COMPARISONS[opposite]} {b})" if opposite != "ne" else f"!({a} < {b} || {a} > {b})"
        else:
            self.unknown()
        if len(parts) > 2 and parts[1] in ("and", "or", "xor"):
            third = rest[2]
            negated = third.startswith("!")
            third = ("!" if negated else "") + self.read(third.lstrip("!"), "pred")
            value = f"({value}) {dict(zip(('and', 'or', 'xor'), '&|^'))[parts[1]]} {third}"
        if second is not None:
            self.unknown()
        self.write(first, "pred", value)

    def do_selp(self, parts, ops):
        kind = "b%d" % BITS[parts[-1]]
        self.write(ops[0], kind, f"{self.read(ops[3], 'pred')} ? {self.bits(ops[1], parts[-1])} : {self.bits(ops[2], parts[-1])}")

    def do_mov(self, parts, ops):
        kind = parts[-1]
        to, what = ops
        if to.startswith("{"):
            halves = self.registers_of(to)
            width = BITS[kind] // len(halves)
            value = self.read(what, kind)
            for i, half in enumerate(halves):
                if half != "_":
                    self.write(half, f"b{width}", f"{value} >> {i * width}")
        elif what.startswith("{"):
            halves = self.registers_of(what)
            width = BITS[kind] // len(halves)
            self.write(to, kind, " | ".join(f"({ctype(kind)}){self.bits(half, f'b{width}')} << {i * width}" for i, half in enumerate(halves)))
        elif kind == "pred":
            self.write(to, kind, self.read(what, kind))
        else:
            self.write(to, f"b{BITS[kind]}", self.bits(what, kind))

    def do_cvta(self, parts, ops):
        to = parts[0] == "to"
        space = parts[1] if to else parts[0]
        value = self.read(ops[1], "u64")
        if space == "shared":
            value = f"{value} - (uint64_t)L->shared" if to else f"{value} + (uint64_t)L->shared"
        self.write(ops[0], parts[-1], value)

    def do_cvt(self, parts, ops):
        to, of = parts[-2:]
        if to in ("f16x2", "bf16x2"):
            half = to[:-2]
            high, low = (self.read(op, "f32") for op in ops[1:3])
            return self.write(ops[0], "b32", f"{half}_bits({low}) | (uint32_t){half}_bits({high}) << 16")
        if to == "pack":
            self.unknown()
        value = self.read(ops[1], of)
        if to == "tf32":
            return self.write(ops[0], "b32", f"tf32_bits({value})")
        modes = {"rzi": "trunc", "rni": "rint", "rmi": "floor", "rpi": "ceil"}
        mode = next((modes[part] for part in parts if part in modes), None)
        if is_float(of) and not is_float(to):
            value = f"{to}_near({mode or 'trunc'}({value}))"
        elif is_float(of) and is_float(to):
            if mode:
                value = f"{mode}({value})"
            if "rz" in parts or "rm" in parts or "rp" in parts:
                self.unknown()
            if of == "f64" and to == "f32":
                value = f"(float)({value})"
        elif is_float(to):
            if not ("rn" in parts):
                self.unknown()
            value = f"({ctype(to)}){value}"
        elif "sat" in parts:
            self.unknown()
        if "sat" in parts:
            value = f"saturated({value})"
        if "relu" in parts:
            self.unknown()
        self.write(ops[0], to, value)

    def to_nearest(self, parts):
        if {"rm", "rp", "rz", "sat"} & set(parts):
            self.unknown()

    def function(self, parts, ops, name):
        self.to_nearest(parts)
        kind = parts[-1]
        self.write(ops[0], kind, f"{name}{'f' if kind == 'f32' else ''}({self.read(ops[1], kind)})")


for _name, _c in FUNCTIONS.items():
    setattr(Arithmetic, "do_" + _name, lambda self, parts, ops, c=_c: self.function(parts, ops, c))

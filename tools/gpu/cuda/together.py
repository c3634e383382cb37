"""What threads do together in PTX, as C: barriers, lanes that read each other's registers, products of matrices."""
import re

from memory import space_of
from operands import BITS, Operands


class Together(Operands):
    def together(self, mask, values):
        """Gives every lane the values of all: `all[lane][i]`, from here to the end of the block that is opened."""
        self.meets, self.site = True, self.site + 1
        self.emit(f"{{ const uint32_t mine[] = {{ {', '.join(values)} }};")
        self.emit(f"const slot *all = exchange(L, {mask}, mine, {len(values)}, {self.site});")

    def do_bar(self, parts, ops):
        self.meets, self.site = True, self.site + 1
        if parts[0] == "warp":
            self.emit(f"exchange(L, {self.read(ops[0], 'u32')}, NULL, 0, {self.site});")
        elif len(ops) > 1 or "red" in parts:
            self.unknown()
        else:
            self.emit(f"meet(L, {self.read(ops[0], 'u32')});")

    def do_activemask(self, parts, ops):
        self.meets = True
        self.write(ops[0], "b32", "lanes_there(L)")

    def do_shfl(self, parts, ops):
        how = parts[1] if parts[0] == "sync" else parts[0]
        predicate = ops.pop(1) if len(ops) == 6 else None
        to, what, lane, clamp, mask = ops
        self.together(self.read(mask, "u32"), [self.read(what, "b32")])
        self.emit(f"uint8_t there; uint32_t from = shuffled_from_{how}(L, {self.read(lane, 'u32')}, {self.read(clamp, 'u32')}, &there);")
        self.write(to, "b32", "all[from][0]")
        if predicate:
            self.write(predicate, "pred", "there")
        self.emit("}")

    def matrix_rows(self, parts, at, registers):
        """Gives every lane the places of all rows, in a block that is opened, and says whether rows are columns."""
        if parts[-1] != "b16" or "m8n8" not in parts or f"x{len(registers)}" not in parts:
            self.unknown()
        self.emit(f"{{ uint64_t row = (uint64_t){self.memory(at, space_of(parts), 16)};")
        self.together("0xffffffffu", ["(uint32_t)row", "(uint32_t)(row >> 32)"])
        return int("trans" in parts)

    def do_ldmatrix(self, parts, ops):
        registers = self.registers_of(ops[0])
        trans = self.matrix_rows(parts, ops[1], registers)
        for i, register in enumerate(registers):
            self.write(register, "b32", f"matrix_part(L, all, {i}, {trans})")
        self.emit("}}")

    def do_stmatrix(self, parts, ops):
        registers = self.registers_of(ops[1])
        trans = self.matrix_rows(parts, ops[0], registers)
        for i, register in enumerate(registers):
            self.emit(f"matrix_part_into(L, all, {i}, {trans}, {self.read(register, 'b32')});")
        self.emit("}}")

    def do_mma(self, parts, ops):
        shape = next(part for part in parts if re.match(r"m\d+n\d+k\d+$", part))
        kinds = parts[-4:]
        if parts[2:] and ("row", "col") != tuple(part for part in parts if part in ("row", "col")):
            self.unknown()
        d, a, b, c = (self.registers_of(op) for op in ops)
        if kinds[0] != "f32" or kinds[3] != "f32" or kinds[1] != kinds[2] or kinds[1] not in ("bf16", "f16", "tf32") or not shape.startswith("m16n8"):
            self.unknown()
        k = int(shape.split("k")[1])
        self.together("0xffffffffu", [self.read(r, "b32") for r in a + b])
        self.emit(f"float d[4] = {{ {', '.join(self.read(r, 'f32') for r in c)} }};")
        self.emit(f"multiplied_{kinds[1]}(L, all, {k}, {len(a)}, d);")
        for i, register in enumerate(d):
            self.write(register, "f32", f"d[{i}]")
        self.emit("}")

    def do_wmma(self, parts, ops):
        what = parts[0]
        layout = [part for part in parts if part in ("row", "col")]
        m, n, k = map(int, re.findall(r"\d+", next(part for part in parts if re.match(r"m\d+n\d+k\d+$", part))))
        if what in ("load", "store"):
            which, kind = parts[1], parts[-1]
            space = space_of(parts)
            rows, columns = {"a": (m, k), "b": (k, n), "c": (m, n), "d": (m, n)}[which]
            fragment, at, stride = (ops[0], ops[1], ops[2]) if what == "load" else (ops[1], ops[0], ops[2])
            registers = self.registers_of(fragment)
            pointer = self.memory(at, space, BITS[kind] // 8)
            self.emit(f"{{ uint32_t part[{len(registers)}]; uint8_t *at = {pointer};")
            matrix = f"at, {self.read(stride, 'u32')}, {rows}, {columns}, {int(layout[0] == 'row')}, {BITS[kind] // 8}"
            if what == "load":
                self.emit(f"fragment_from(L, part, {len(registers)}, {matrix});")
                for i, register in enumerate(registers):
                    self.write(register, "b32", f"part[{i}]")
            else:
                for i, register in enumerate(registers):
                    self.emit(f"part[{i}] = {self.read(register, 'b32')};")
                self.emit(f"fragment_into(L, part, {matrix});")
            self.emit("}")
            return
        types = [part for part in parts if part in BITS]
        # Of bf16 and tf32 the types of all four are written, of f16 those of the sums alone.
        sums, of = (types[0], types[1]) if len(types) == 4 else (types[0], "f16")
        d, a, b, c = (self.registers_of(op) for op in ops)
        if what != "mma" or types[0] != types[-1]:
            self.unknown()
        self.together("0xffffffffu", [self.read(r, "b32") for r in a + b])
        self.emit(f"uint32_t sums[] = {{ {', '.join(self.read(r, 'b32') for r in c)} }};")
        self.emit(f"fragments_multiplied(L, all, sums, {m}, {n}, {k}, {len(a)}, AS_{of}, AS_{sums});")
        for i, register in enumerate(d):
            self.write(register, "b32", f"sums[{i}]")
        self.emit("}")

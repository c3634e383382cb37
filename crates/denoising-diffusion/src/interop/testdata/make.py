"""Makes the PyTorch files of this folder: `python make.py` (torch 2.x). Each is a few kilobytes and shows one property of the format."""

import os
import pickle
from collections import OrderedDict

import torch

x = torch.arange(12, dtype=torch.float32).reshape(3, 4) / 8
contents = {
    "step": 7,
    "version": "2.3.4",
    "scaler": None,
    "model": OrderedDict(
        f32=x,
        f64=x.double(),
        f16=x.half(),
        bf16=x.bfloat16(),
        transposed=x.t(),
        slice=x[1:, ::2],
        count=torch.tensor(123),
        flag=torch.tensor([True, False]),
        parameter=torch.nn.Parameter(x[0].clone()),
        empty=torch.zeros(0, 3),
    ),
    "opt": {"state": {0: {"exp_avg": x}}, "param_groups": [{"lr": 1e-4, "betas": (0.9, 0.99), "params": [0]}]},
}
torch.save(contents, "types.pt")
torch.save(contents, "types_legacy.pt", _use_new_zipfile_serialization=False)
torch.save({"huge": torch.zeros(1).expand(1 << 20, 1 << 8)}, "expanded.pt")
torch.save([x], "list.pt")
torch.save({"epoch": 3, "net": {"conv1.weight": x}}, "other_network.pt")


class Call:
    def __reduce__(self):
        return os.system, ("touch executed",)


torch.save({"step": Call(), "weights": x}, "call.pt")
with open("call.pkl", "wb") as file:
    pickle.dump(Call(), file)

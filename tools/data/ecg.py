"""ecg.npy and ecg-test.npy: windows of a real electrocardiogram, for the recipe ecg.

    pip download --no-deps --only-binary=:all: --python-version 3.10 --platform manylinux_2_17_x86_64 scipy==1.9.3
    python tools/data/ecg.py scipy-1.9.3-*.whl

The recording is part of SciPy 1.9 (scipy/misc/ecg.dat): five minutes of record 208, lead MLII, of the MIT-BIH Arrhythmia Database (Moody
and Mark 2001; PhysioNet, Open Data Commons Attribution License 1.0), in millivolt at 360 Hz. Windows are of 256 values at 180 Hz, 1.42
seconds, 32 values apart; the first four minutes are for training, the last one for comparison.
"""

import io
import sys
import zipfile

import numpy as np

with zipfile.ZipFile(sys.argv[1]) as wheel:
    with np.load(io.BytesIO(wheel.read("scipy/misc/ecg.dat"))) as file:
        ecg = file["ecg"].astype(np.float64)  # 11 bits over 10 mV, 1024 is 0 mV
millivolt = (ecg - 1024) / 200
halved = millivolt.reshape(-1, 2).mean(1)
split = 4 * 60 * 180
for name, part in (("ecg", halved[:split]), ("ecg-test", halved[split:])):
    windows = np.lib.stride_tricks.sliding_window_view(part, 256)[::32]
    np.save(f"{name}.npy", windows[:, None].astype(np.float32))
    print(name, windows.shape, windows.min(), windows.max())

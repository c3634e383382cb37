# `just` lists what there is to do; https://just.systems

default:
    @just --list

# Everything that must hold before a change lands
ci:
    bash .ci/run

# All tests
test:
    cargo test --workspace

# Format and fix what can be fixed
fix:
    cargo fmt --all
    cargo clippy --workspace --all-targets --fix --allow-dirty

# The kernels' tests under AddressSanitizer: every read and write within its slice (needs a nightly toolchain)
sanitize:
    RUSTFLAGS="-Zsanitizer=address" ASAN_OPTIONS=detect_leaks=0 PROPTEST_CASES=16 CARGO_TARGET_DIR=target/sanitize \
        cargo +nightly test -p denoising-diffusion-kernels --lib --target x86_64-unknown-linux-gnu

# The kernels' NEON version on any machine (needs `rustup target add aarch64-unknown-linux-gnu`; Debian's gcc-aarch64-linux-gnu, qemu-user)
test-aarch64:
    CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc \
    CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="qemu-aarch64 -L /usr/aarch64-linux-gnu" PROPTEST_CASES=8 \
        cargo test -p denoising-diffusion-kernels --lib --target aarch64-unknown-linux-gnu

# Train on the embedded digits
train *ARGS:
    cargo run --release -- train {{ARGS}}

# Regenerate most golden files (needs Python and PyPI; tools/parity/README.md has the others)
golden:
    python3 -m venv target/parity && target/parity/bin/pip install -q -r tools/parity/requirements.txt
    target/parity/bin/pip install -q -r tools/parity/requirements-eval.txt
    for script in make_golden golden_likelihood golden_distances golden_sets golden_inception; do \
        target/parity/bin/python tools/parity/$script.py; \
    done

# Time a train step and a forward pass against the reference, interleaved (needs Python and PyPI)
bench-reference *ARGS:
    cargo build --release
    python3 -m venv target/parity && target/parity/bin/pip install -q -r tools/parity/requirements.txt
    target/parity/bin/python tools/bench/run.py --ddpm target/release/ddpm {{ARGS}}

# Time `ddpm fid` against pytorch-fid, interleaved (needs Python and PyPI)
bench-fid *ARGS:
    cargo build --release
    python3 -m venv target/parity && target/parity/bin/pip install -q -r tools/parity/requirements.txt
    target/parity/bin/pip install -q -r tools/parity/requirements-eval.txt
    target/parity/bin/python tools/bench/fid.py --ddpm target/release/ddpm {{ARGS}}

# Time every kernel and compare it with what the machine can do at most
bench-kernels *ARGS:
    cargo bench -p denoising-diffusion-kernels --bench roofline -- {{ARGS}}

# Time every kernel against torch, interleaved (needs Python and PyPI)
bench-kernels-torch *ARGS:
    python3 -m venv target/parity && target/parity/bin/pip install -q -r tools/parity/requirements.txt
    target/parity/bin/python tools/bench/kernels.py {{ARGS}}

# The golden tests and those of GPU kernels on another device: `just test-device wgpu` (Mesa's software Vulkan will do: Debian's
# mesa-vulkan-drivers)
test-device DEVICE *TESTS:
    DDPM_TEST_DEVICE={{DEVICE}} cargo test --features denoising-diffusion/{{DEVICE}} -p denoising-diffusion --lib -- --test-threads 1 cube:: on_gpus
    DDPM_TEST_DEVICE={{DEVICE}} cargo test --features denoising-diffusion/{{DEVICE}} -p denoising-diffusion --test resume --test device_graph -- --test-threads 1
    DDPM_TEST_DEVICE={{DEVICE}} cargo test --features denoising-diffusion/{{DEVICE}} -p denoising-diffusion --test reference -- --test-threads 1 {{TESTS}}
    DDPM_TEST_DEVICE={{DEVICE}} cargo test --features denoising-diffusion/{{DEVICE}},denoising-diffusion/persistence -p denoising-diffusion --test kept_kernels

# The same on CUDA without a GPU: the processor computes kernels (tools/gpu/soft), tensor cores and all. 90 is an H100, which
# multiplies matrices in TF32; 70 has none of that. (Needs what `--features cuda` does, CUDA_PATH, Python and a C compiler; an hour at first.)
test-soft-cuda CAPABILITY="90":
    CUDA_CAPABILITY={{CAPABILITY}} tools/gpu/soft just test-device cuda --skip inception --skip import

# Launches and host time of a training step on CUDA, without a GPU (needs `cargo build --release --features cuda` and a C compiler)
dry-cuda *ARGS:
    tools/gpu/dry target/release/ddpm {{ARGS}}

# Mixed precision on a GPU that computes in bf16: `just test-bf16 cuda`, or `tools/gpu/soft just test-bf16 cuda`
test-bf16 DEVICE:
    DDPM_TEST_DEVICE={{DEVICE}} cargo test --features denoising-diffusion/{{DEVICE}} -p denoising-diffusion --test precision -- --test-threads 1

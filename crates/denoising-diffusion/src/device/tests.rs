//! Names of devices, which of them are opened, and what they keep.

use super::*;

#[test]
fn names_read_and_print() {
    let gpu = |backend, index| DeviceChoice::Gpu { backend, index };
    for (text, choice) in [
        ("auto", DeviceChoice::Auto),
        ("cpu", DeviceChoice::Cpu),
        ("cuda", gpu(Backend::Cuda, 0)),
        ("vulkan:3", gpu(Backend::Vulkan, 3)),
    ] {
        assert_eq!(text.parse::<DeviceChoice>().unwrap(), choice);
        assert_eq!(choice.to_string().parse::<DeviceChoice>().unwrap(), choice);
    }
    for text in ["", "gpu", "cpu:0", "cuda:", "cuda:x", "cuda:-1", "auto:1", "Cuda"] {
        assert!(text.parse::<DeviceChoice>().unwrap_err().to_string().contains("is not a device"), "{text}");
    }
}

#[test]
fn what_is_not_there_is_said() {
    for backend in Backend::ALL {
        match open(DeviceChoice::Gpu { backend, index: 1000 }) {
            Err(DeviceError::NotCompiled(name)) => assert!(!backend.is_compiled() && name == backend.name()),
            Err(DeviceError::NotThere { .. }) => assert!(backend.is_compiled()),
            other => panic!("{other:?}"),
        }
    }
    assert!(open(DeviceChoice::Auto).is_ok());
    assert!(is_cpu(&Device::flex()) && is_cpu(&Device::flex().autodiff()));
}

/// Each device that is tried out takes memory that may be somebody else's, and one that hangs takes the program with it.
#[test]
fn only_as_many_devices_are_tried_out_as_it_takes() {
    let gpu = |index| DeviceChoice::Gpu { backend: Backend::Vulkan, index };
    let devices = |backend| match backend {
        Backend::Vulkan | Backend::Wgpu => Ok(vec![Device::flex(); 4]),
        other => Err(DeviceError::NotCompiled(other.name())),
    };
    let broken = || DeviceError::Broken { device: "vulkan:0".into(), reason: "its driver fails".into() };
    let opened = |wanted| {
        let mut tried = Vec::new();
        let opened = choose(wanted, devices, |device, choice| {
            tried.push(choice);
            let hardware = Some(if choice == gpu(1) { "llvmpipe" } else { "a GPU" }.to_string());
            if choice == gpu(0) {
                Err(broken())
            } else {
                Ok(Opened { device, choice, hardware, passed_over: Vec::new() })
            }
        });
        if let Ok(opened) = &opened {
            let expected = if wanted == DeviceChoice::Auto { vec![broken()] } else { Vec::new() };
            assert_eq!(opened.passed_over, expected);
        }
        (opened.map(|opened| opened.choice), tried)
    };
    assert_eq!(opened(gpu(3)), (Ok(gpu(3)), vec![gpu(3)]));
    assert_eq!(opened(gpu(0)), (Err(broken()), vec![gpu(0)]));
    assert_eq!(opened(gpu(4)), (Err(DeviceError::NotThere { backend: "vulkan", found: 4 }), vec![]));
    assert_eq!(opened(DeviceChoice::Auto), (Ok(gpu(2)), vec![gpu(0), gpu(1), gpu(2)]));
    assert_eq!(opened(DeviceChoice::Cpu), (Ok(DeviceChoice::Cpu), vec![]));
}

#[test]
fn what_is_missing_is_said_in_short() {
    let panic =
        "The bytes were never written\nCaused by:\n  libdevice.10.bc was not found: the kernel calls a math function";
    assert!(in_short(panic).starts_with("kernels need a file of the CUDA toolkit"));
    assert_eq!(in_short("the driver\nfails"), "the driver fails");
}

#[cfg(feature = "persistence")]
mod on_gpus {
    use super::*;
    use crate::nn::ops::cube::tests::test_device;
    use crate::nn::params::host_values;

    /// The folder applies to the whole process: later tests find it deleted and find everything out again. It is set before the device is
    /// opened, as in programs.
    #[test]
    fn what_they_found_out_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let file = keep_kernels_in(folder.path()).unwrap();
        assert!(file.starts_with(folder.path()) && !file.exists());
        let Some(device) = test_device() else { return };
        let square = Tensor::<2>::ones([40, 40], &device);
        let sum = square.clone().matmul(square).sum().into_scalar::<f32>();
        assert_eq!(sum, 64_000.0);
        assert!(file.exists(), "{}", file.display());
    }

    #[test]
    fn threads_see_what_others_did() {
        let Some(device) = test_device() else { return };
        for _ in 0..20 {
            let ones = Tensor::<1>::ones([1000], &device);
            let doubled = move || (0..20).fold(ones, |x, _| x * 2.0);
            let values = host_values(std::thread::spawn(doubled).join().unwrap());
            assert!(values.iter().all(|value| *value == (1 << 20) as f32), "{:?}", &values[..4]);
        }
    }
}

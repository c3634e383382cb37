//! The batches of a step on several devices, which take turns: each has a copy of the network, gets the weights before the step, and sends the
//! gradients of its batches to the trainer's own device, which adds them in the order of the batches. So a step gives the same result as on one
//! device, up to rounding: to the bit if all run the same kernels, but each GPU has tuned its own. Not here: the passes themselves (`passes`).
//!
//! Weights and gradients travel through the host, which works between any two devices. Devices compute concurrently because none is waited for
//! before work has been submitted to all.

use burn::module::Module;
use burn::tensor::{Device, Tensor, TensorData, Transaction};
use thiserror::Error;

use super::trainer::Trainer;
use crate::device::is_cpu;
use crate::models::Network;
use crate::nn::Eval;
use crate::nn::params::{self, Role, VisitTensor};
use crate::nn::sweeps;

/// Why devices cannot share the batches of a step.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ReplicasError {
    #[error(
        "{devices} devices need at least {devices} batches per step, but a step has {batches}: set `accumulate` to {devices} or more"
    )]
    TooFewBatches { devices: usize, batches: usize },
    #[error(
        "a network with running statistics can be trained on one device only: its statistics would depend on how batches are divided"
    )]
    RunningStatistics,
    #[error("a CPU and a GPU cannot share the batches of a step")]
    CpuAndGpu,
}

impl<M> Trainer<M> {
    /// Uses these devices in addition to the trainer's own: they take turns with the batches of a step, with the same result as on one device of
    /// their kind, up to rounding (each GPU tunes its own kernels; to the bit where these are the same).
    ///
    /// # Errors
    /// Fewer batches per step than devices; a CPU together with a GPU; a network with running statistics.
    pub fn with_replicas(mut self, devices: &[Device]) -> Result<Self, ReplicasError>
    where
        M: Module,
    {
        let (count, batches) = (1 + devices.len(), self.config.accumulate);
        if batches < count {
            return Err(ReplicasError::TooFewBatches { devices: count, batches });
        }
        if !devices.iter().all(|device| can_share(&self.device, device)) {
            return Err(ReplicasError::CpuAndGpu);
        }
        if self.has_buffers && !devices.is_empty() {
            return Err(ReplicasError::RunningStatistics);
        }
        self.replicas = devices.iter().map(|device| Replica::new(self.model(), device)).collect();
        Ok(self)
    }

    /// The plain device that runs the passes over batch number `k` of a step.
    pub fn device_of_batch(&self, k: usize) -> Device {
        match k % (1 + self.replicas.len()) {
            0 => self.device(),
            other => self.replicas[other - 1].device.clone().inner(),
        }
    }
}

impl<M: Network> Trainer<M> {
    /// The moving average, ready for samples and measurements, on all devices of the trainer.
    pub(super) fn averaged(&self) -> AverageOnDevices<M> {
        let eval = self.ema().eval();
        let on = |replica: &Replica<M>| {
            let device = replica.device.clone().inner();
            (device.clone(), eval.on(&device).for_predictions())
        };
        let others = self.replicas.iter().map(on).collect();
        AverageOnDevices { eval: eval.for_predictions(), others }
    }
}

/// Copies of a moving average.
#[derive(Debug)]
pub(super) struct AverageOnDevices<M> {
    /// On the trainer's own device.
    pub(super) eval: Eval<M>,
    /// On the replicas' devices.
    pub(super) others: Vec<(Device, Eval<M>)>,
}

/// A copy of the network in training.
#[derive(Debug)]
pub(super) struct Replica<M> {
    /// An autodiff device.
    pub(super) device: Device,
    pub(super) model: M,
}

impl<M: Module> Replica<M> {
    fn new(model: &M, device: &Device) -> Self {
        let device = device.clone().autodiff();
        Self { model: model.clone().fork(&device), device }
    }

    pub(super) fn place(&self) -> At<'_, M> {
        At { device: &self.device, model: &self.model }
    }

    /// Takes over these [`weights`], which must be of the same network.
    fn take_over(&mut self, weights: Vec<TensorData>) {
        let device = self.device.clone().inner();
        self.model = sweeps::replace(self.model.clone(), |_| Some(()), |_| written(weights, &device));
    }
}

/// A device, and the network on it in the form used for data.
#[derive(Debug)]
pub(super) struct At<'a, M> {
    pub(super) device: &'a Device,
    pub(super) model: &'a M,
}

impl<M> Clone for At<'_, M> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<M> Copy for At<'_, M> {}

/// Copies the weights of `model` to all replicas. Waits for its device.
pub(super) fn follow<M: Module>(replicas: &mut [Replica<M>], model: &M) {
    let Some((last, others)) = replicas.split_last_mut() else { return };
    let weights = weights(model);
    for replica in others {
        replica.take_over(weights.clone());
    }
    last.take_over(weights);
}

/// All floating-point tensors of a network, flat.
fn weights<M: Module>(model: &M) -> Vec<TensorData> {
    struct Flat(Vec<Tensor<1>>);
    impl VisitTensor for Flat {
        fn visit<const D: usize>(&mut self, name: &str, _: Role, tensor: &Tensor<D>) {
            self.0.push(sweeps::flat(name, tensor.clone().inner()));
        }
    }
    let mut flat = Flat(Vec::new());
    params::visit(model, &mut flat);
    read(flat.0)
}

/// The same tensors on another device.
pub(super) fn moved(tensors: Vec<Tensor<1>>, device: &Device) -> Vec<Tensor<1>> {
    written(read(tensors), device)
}

/// Tensors with these values and types.
fn written(values: Vec<TensorData>, device: &Device) -> Vec<Tensor<1>> {
    let one = |data: TensorData| {
        let dtype = data.dtype();
        Tensor::from_data(data, (device, dtype))
    };
    values.into_iter().map(one).collect()
}

/// Reads tensors of one device, waiting for it once.
fn read(tensors: Vec<Tensor<1>>) -> Vec<TensorData> {
    tensors.into_iter().fold(Transaction::default(), Transaction::register).execute()
}

/// Whether weights have the same order on both devices, see [`sweeps::flat`].
fn can_share(one: &Device, other: &Device) -> bool {
    is_cpu(one) == is_cpu(other)
}

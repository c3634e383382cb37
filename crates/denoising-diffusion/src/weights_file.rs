//! Self-contained safetensors files, whose metadata hold a card (JSON) that describes what the tensors are. Not here: the contents of a card.

use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::interop::{self, InteropError, Metadata};
use crate::weights::StateDict;

/// What a file contains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Of {
    /// A denoising network.
    Model,
    Classifier,
}

impl Of {
    const ALL: [Self; 2] = [Self::Model, Self::Classifier];

    /// The metadata key of the card.
    fn key(self) -> &'static str {
        match self {
            Self::Model => "denoising-diffusion.card",
            Self::Classifier => "denoising-diffusion.classifier",
        }
    }
}

/// Why a file has no usable card.
#[derive(Debug)]
pub enum NoCard {
    File(InteropError),
    /// The card describes something else.
    OfOther,
    /// There is none: another program wrote the file.
    Absent,
    Unreadable(serde_json::Error),
}

/// The card and the tensors of a file.
pub fn read<C: DeserializeOwned>(path: &Path, of: Of) -> Result<(C, StateDict), NoCard> {
    // The beginning tells whether there is a card; to read and check all tensors can take long.
    read_card::<C>(path, of)?;
    let (state, metadata) = interop::read_safetensors(path).map_err(NoCard::File)?;
    Ok((card_in(&metadata, of)?, state))
}

/// The card alone; works even if the tensors are damaged.
pub fn read_card<C: DeserializeOwned>(path: &Path, of: Of) -> Result<C, NoCard> {
    card_in(&interop::read_metadata(path).map_err(NoCard::File)?, of)
}

fn card_in<C: DeserializeOwned>(metadata: &Metadata, of: Of) -> Result<C, NoCard> {
    let Some(json) = metadata.get(of.key()) else {
        let of_other = Of::ALL.into_iter().any(|other| metadata.contains_key(other.key()));
        return Err(if of_other { NoCard::OfOther } else { NoCard::Absent });
    };
    serde_json::from_str(json).map_err(NoCard::Unreadable)
}

/// Writes the card and the tensors, atomically.
///
/// # Errors
/// The folder is missing or not writable, or the disk is full.
pub fn write<C: Serialize>(path: &Path, of: Of, card: &C, state: &StateDict) -> Result<(), InteropError> {
    let card = serde_json::to_string(card).expect("a card holds numbers and strings only");
    interop::write_safetensors(path, state, &Metadata::from([(of.key().to_string(), card)]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::HostTensor;

    /// The file is damaged as well, which takes longer to find out.
    #[test]
    fn the_card_is_looked_for_before_the_tensors_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.safetensors");
        let state = StateDict::from_iter([("a".to_string(), HostTensor::new([2], vec![1.0, 2.0]).unwrap())]);
        let damaged = |metadata: &Metadata| {
            interop::write_safetensors(&path, &state, metadata).unwrap();
            let mut bytes = std::fs::read(&path).unwrap();
            *bytes.last_mut().unwrap() ^= 1;
            std::fs::write(&path, bytes).unwrap();
            read::<u32>(&path, Of::Model).unwrap_err()
        };
        let card = |of: Of| Metadata::from([(of.key().to_string(), "1".to_string())]);
        assert!(matches!(damaged(&Metadata::new()), NoCard::Absent));
        assert!(matches!(damaged(&card(Of::Classifier)), NoCard::OfOther));
        assert!(matches!(damaged(&card(Of::Model)), NoCard::File(InteropError::Damaged { .. })));
    }
}

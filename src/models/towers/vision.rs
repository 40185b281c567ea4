//! Images to rows of vectors, one for each patch and one for each learned token before them.

use candle_core::Tensor;

use super::positions::{Positions, centres};
use super::rows::{pick, starts};
use crate::error::Result;
use crate::kernels::{Activation, Linear, patchify};
use crate::models::transformer::{Bias, Norm, SafeTensors, Transformer};

/// The convolution that makes a vector of each patch, as a product.
pub(crate) struct Patches {
    pub(crate) linear: Linear,
    /// Number of pixels along a patch's side.
    pub(crate) side: usize,
}

impl Patches {
    /// Loads `{name}.weight`, `(width, channels, side, side)`, and with a bias `{name}.bias`.
    pub(crate) fn load(
        tensors: &SafeTensors<'_>,
        name: &str,
        width: usize,
        side: usize,
        bias: Bias,
    ) -> Result<Self> {
        let weight = tensors.tensor(&format!("{name}.weight"), &[width, 3, side, side])?;
        let bias = match bias {
            Bias::Yes => Some(tensors.tensor(&format!("{name}.bias"), &[width])?),
            Bias::No => None,
        };
        Ok(Self { linear: Linear::new(&weight.flatten_from(1)?, bias)?, side })
    }

    /// Loads a layer `name` over the pixels of a patch, row by row with the channels of each together,
    /// `(width, side · side · channels)`, and its bias.
    pub(crate) fn load_of_pixels(
        tensors: &SafeTensors<'_>,
        name: &str,
        width: usize,
        side: usize,
    ) -> Result<Self> {
        let weight = tensors.tensor(&format!("{name}.weight"), &[width, side * side * 3])?;
        let weight = weight.reshape((width, side, side, 3))?.permute((0, 3, 1, 2))?.contiguous()?;
        let bias = tensors.tensor(&format!("{name}.bias"), &[width])?;
        Ok(Self { linear: Linear::new(&weight.flatten_from(1)?, Some(bias))?, side })
    }
}

/// A vision transformer up to the last block; the norm after it is left to its users.
pub(crate) struct VisionTower {
    pub(crate) patches: Patches,
    /// The learned tokens before the patches, `(count, width)`, their positions added: a class, registers.
    pub(crate) leading: Option<Tensor>,
    pub(crate) positions: Positions,
    /// Norm before the first block.
    pub(crate) first_norm: Option<Norm>,
    pub(crate) transformer: Transformer,
}

/// The rows of several images, one image after another.
pub(crate) struct ImageRows {
    /// `(rows, width)`.
    pub(crate) hidden: Tensor,
    /// Rows of each image.
    pub(crate) lengths: Vec<usize>,
}

impl ImageRows {
    /// Each image's first row: its class, where the tower has one.
    pub(crate) fn first(&self) -> Result<Tensor> {
        pick(&self.hidden, starts(&self.lengths))
    }
}

impl VisionTower {
    /// Number of learned tokens before an image's patches.
    pub(crate) fn leading(&self) -> usize {
        self.leading.as_ref().map_or(0, |leading| leading.dims().first().copied().unwrap_or(0))
    }

    /// Passes images of `(channels, height, width)` each, which need not be of one size, through all blocks.
    /// `watch` is asked before each block and after the last, and can end the pass by an error.
    pub(crate) fn forward(&self, images: &[Tensor], watch: impl Fn() -> Result<()>) -> Result<ImageRows> {
        self.run(images, self.transformer.depth(), |_, _| watch())
    }

    /// Passes images through the first `count` blocks; `seen` as in [`Transformer::encode`].
    pub(crate) fn run(
        &self,
        images: &[Tensor],
        count: usize,
        seen: impl FnMut(usize, &Tensor) -> Result<()>,
    ) -> Result<ImageRows> {
        let ImageRows { hidden, lengths } = self.embed(images)?;
        let hidden = match self.positions.is_rotary() {
            true => self.transformer.encode_at(hidden, &lengths, &self.centres(images)?, 0..count, seen)?,
            false => self.transformer.encode(hidden, &lengths, 0..count, seen)?,
        };
        Ok(ImageRows { hidden, lengths })
    }

    /// The coordinates of each row: the centre of a patch, and the middle of the image for a learned token, which is
    /// not rotated.
    fn centres(&self, images: &[Tensor]) -> Result<Vec<[f32; 2]>> {
        let mut all = Vec::new();
        for image in images {
            let (_, height, width) = image.dims3()?;
            all.resize(all.len() + self.leading(), [0.0; 2]);
            all.extend(centres(height / self.patches.side, width / self.patches.side));
        }
        Ok(all)
    }

    /// The rows that the first block is given.
    pub(crate) fn embed(&self, images: &[Tensor]) -> Result<ImageRows> {
        let side = self.patches.side;
        let cut = images.iter().map(|image| patchify(image, side)).collect::<Result<Vec<_>>>()?;
        let rows = self.patches.linear.forward(&Tensor::cat(&cut, 0)?, Activation::Identity)?;
        let (mut parts, mut lengths, mut first) = (Vec::new(), Vec::with_capacity(images.len()), 0);
        for image in images {
            let (_, height, width) = image.dims3()?;
            let (down, across) = (height / side, width / side);
            let count = down * across;
            parts.extend(self.leading.clone());
            parts.push(self.positions.add_to(rows.narrow(0, first, count)?, down, across)?);
            lengths.push(self.leading() + count);
            first += count;
        }
        let hidden = Tensor::cat(&parts, 0)?;
        let hidden = match &self.first_norm {
            Some(norm) => norm.forward(&hidden)?,
            None => hidden,
        };
        Ok(ImageRows { hidden, lengths })
    }
}

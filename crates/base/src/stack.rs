//! Blocks one after the other: forward, and back as far down as anything is trained.
//!
//! With checkpointing a block keeps its input alone and is computed again when its turn comes; the results are
//! the same bits. Decoders and encoders walk alike.

use candle_core::{Result, Tensor};

use crate::block::{self, Block, Pass};
use crate::encoder;
use crate::encoder::block::{EncoderBlock, EncoderPass};
use crate::projection::Hook;

/// How much of a forward pass is kept for the way back.
#[derive(Clone, Copy, Debug)]
pub struct Keep {
    /// The first block that is differentiated.
    pub lowest: usize,
    /// Whether blocks keep their input alone and are computed again.
    pub checkpointing: bool,
}

/// A block as the stack sees it.
pub(crate) trait Step {
    /// What its backward pass needs of its forward pass.
    type Kept;
    /// What all blocks share in one pass over a batch.
    type Pass<'a>;

    /// Its output for `x`, and what is kept if that is asked for.
    fn forward(
        &self,
        x: &Tensor,
        pass: &Self::Pass<'_>,
        hook: &mut dyn Hook,
        keep: bool,
    ) -> Result<(Tensor, Option<Self::Kept>)>;

    /// What [`Step::forward`] keeps, of an input whose output is known already.
    fn again(
        &self,
        x: &Tensor,
        pass: &Self::Pass<'_>,
        hook: &mut dyn Hook,
    ) -> Result<Option<Self::Kept>> {
        Ok(self.forward(x, pass, hook, true)?.1)
    }

    /// Gradient of its input, from that of its output.
    fn backward(
        &self,
        dy: &Tensor,
        kept: Self::Kept,
        pass: &Self::Pass<'_>,
        hook: &mut dyn Hook,
    ) -> Result<Tensor>;
}

macro_rules! step {
    ($block:ty, $kept:ty, $pass:ident $(, $again:ident)?) => {
        impl Step for $block {
            type Kept = $kept;
            type Pass<'a> = $pass<'a>;

            fn forward(
                &self,
                x: &Tensor,
                pass: &$pass,
                hook: &mut dyn Hook,
                keep: bool,
            ) -> Result<(Tensor, Option<$kept>)> {
                <$block>::forward(self, x, pass, hook, keep)
            }

            $(fn $again(
                &self,
                x: &Tensor,
                pass: &$pass,
                hook: &mut dyn Hook,
            ) -> Result<Option<$kept>> {
                <$block>::$again(self, x, pass, hook)
            })?

            fn backward(
                &self,
                dy: &Tensor,
                kept: $kept,
                pass: &$pass,
                hook: &mut dyn Hook,
            ) -> Result<Tensor> {
                <$block>::backward(self, dy, kept, pass, hook)
            }
        }
    };
}

step!(Block, block::Kept, Pass, again);
step!(EncoderBlock, encoder::block::Kept, EncoderPass);

/// What the way back through blocks needs of the way forward.
pub struct StackKept<K> {
    /// First block that is differentiated.
    lowest: usize,
    /// Inputs of the blocks that are computed again.
    inputs: Vec<Tensor>,
    blocks: Vec<K>,
}

/// The output of the last block for the input `x` of block `first`, and what the way back needs if `keep` says how
/// much.
pub(crate) fn forward<S: Step>(
    blocks: &[S],
    first: usize,
    mut x: Tensor,
    pass: &S::Pass<'_>,
    hook: &mut dyn Hook,
    keep: Option<Keep>,
) -> Result<(Tensor, StackKept<S::Kept>)> {
    let lowest = keep.map_or(blocks.len(), |keep| keep.lowest);
    let checkpointing = keep.is_some_and(|keep| keep.checkpointing);
    let mut all = StackKept {
        lowest,
        inputs: Vec::new(),
        blocks: Vec::new(),
    };
    for (layer, block) in blocks.iter().enumerate().skip(first) {
        let differentiated = layer >= lowest;
        if differentiated && checkpointing {
            all.inputs.push(x.clone());
        }
        let (y, kept) = block.forward(&x, pass, hook, differentiated && !checkpointing)?;
        all.blocks.extend(kept);
        x = y;
    }
    Ok((x, all))
}

/// Gradient of the input of the lowest block that is differentiated, from that of the last block's output.
pub(crate) fn backward<S: Step>(
    blocks: &[S],
    mut dx: Tensor,
    mut all: StackKept<S::Kept>,
    pass: &S::Pass<'_>,
    hook: &mut dyn Hook,
) -> Result<Tensor> {
    for block in blocks[all.lowest..].iter().rev() {
        let kept = match all.inputs.pop() {
            Some(input) => block.again(&input, pass, hook)?,
            None => all.blocks.pop(),
        };
        let Some(kept) = kept else {
            candle_core::bail!("a block kept nothing for its backward pass");
        };
        dx = block.backward(&dx, kept, pass, hook)?;
    }
    Ok(dx)
}

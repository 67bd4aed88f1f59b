//! The protobuf codec, with one difference from tonic's: a request that can't be decoded is the
//! caller's mistake, `INVALID_ARGUMENT`, not ours (`INTERNAL`).

use std::marker::PhantomData;

use prost::Message;
use tonic::{
    Code, Status,
    codec::{Codec, DecodeBuf, Decoder},
};
use tonic_prost::{ProstCodec, ProstDecoder, ProstEncoder};

/// Encodes `T`, decodes `U`; see the module.
#[derive(Debug, Clone)]
pub struct InputCheckedCodec<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for InputCheckedCodec<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> Codec for InputCheckedCodec<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = ProstEncoder<T>;
    type Decoder = InputCheckedDecoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        ProstCodec::<T, U>::default().encoder()
    }

    fn decoder(&mut self) -> Self::Decoder {
        InputCheckedDecoder(ProstDecoder::default())
    }
}

/// Decodes `U`; a message that can't be decoded is `INVALID_ARGUMENT`.
#[derive(Debug)]
pub struct InputCheckedDecoder<U>(ProstDecoder<U>);

impl<U: Message + Default> Decoder for InputCheckedDecoder<U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        self.0.decode(buffer).map_err(|status| match status.code() {
            Code::Internal => Status::invalid_argument(format!(
                "the request is not a valid protobuf message of its type: {}",
                status.message()
            )),
            _ => status,
        })
    }
}

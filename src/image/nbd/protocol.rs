//! Numbers and layouts of the NBD wire. All integers are big-endian.

/// First eight bytes of a server, `NBDMAGIC`.
pub(crate) const GREETING: u64 = 0x4e42_444d_4147_4943;
/// `IHAVEOPT`: a newstyle server; also before each option of the client.
pub(crate) const OPTION: u64 = 0x4948_4156_454f_5054;
/// Before each reply to an option.
pub(crate) const OPTION_REPLY: u64 = 0x0003_e889_0455_65a9;
/// Before each request.
pub(crate) const REQUEST: u32 = 0x2560_9513;
/// Before a simple reply.
pub(crate) const SIMPLE_REPLY: u32 = 0x6744_6698;
/// Before each chunk of a structured reply.
pub(crate) const STRUCTURED_REPLY: u32 = 0x668e_33ef;

/// Handshake flag: fixed newstyle (both directions).
pub(crate) const FLAG_FIXED_NEWSTYLE: u16 = 1;
/// Handshake flag: no padding after the old export option (both directions).
pub(crate) const FLAG_NO_ZEROES: u16 = 2;

/// Option: choose an export and go on to transmission.
pub(crate) const OPT_GO: u32 = 7;
/// Option: structured replies.
pub(crate) const OPT_STRUCTURED_REPLY: u32 = 8;
/// Option: metadata contexts for block status.
pub(crate) const OPT_SET_META_CONTEXT: u32 = 10;

/// Option reply: done.
pub(crate) const REP_ACK: u32 = 1;
/// Option reply: a piece of information on the export.
pub(crate) const REP_INFO: u32 = 3;
/// Option reply: a metadata context and its id.
pub(crate) const REP_META_CONTEXT: u32 = 4;
/// Option replies with this bit are errors.
pub(crate) const REP_ERROR: u32 = 1 << 31;

/// Information: size and transmission flags.
pub(crate) const INFO_EXPORT: u16 = 0;
/// Information: smallest, preferred and largest block size.
pub(crate) const INFO_BLOCK_SIZE: u16 = 3;

/// Transmission flag: the other flags mean something.
pub(crate) const TRANSMISSION_HAS_FLAGS: u16 = 1;
/// Transmission flag: read-only.
pub(crate) const TRANSMISSION_READ_ONLY: u16 = 2;

/// Command: read.
pub(crate) const CMD_READ: u16 = 0;
/// Command: disconnect.
/// Command: block status.
pub(crate) const CMD_BLOCK_STATUS: u16 = 7;

/// Chunk flag: the last one of its reply.
pub(crate) const REPLY_DONE: u16 = 1;
/// Chunk: nothing.
pub(crate) const REPLY_NONE: u16 = 0;
/// Chunk: data at an offset.
pub(crate) const REPLY_OFFSET_DATA: u16 = 1;
/// Chunk: zeros at an offset.
pub(crate) const REPLY_OFFSET_HOLE: u16 = 2;
/// Chunk: block status.
pub(crate) const REPLY_BLOCK_STATUS: u16 = 5;
/// Chunk types with this bit are errors; all begin with an errno and a message.
pub(crate) const REPLY_ERROR: u16 = 1 << 15;

/// Block status of `base:allocation`: reads as zeros.
pub(crate) const STATE_ZERO: u32 = 2;

/// Largest payload that every server must take.
pub(crate) const MAX_PAYLOAD: u32 = 32 << 20;

/// A request on the wire.
pub(crate) fn request(command: u16, cookie: u64, offset: u64, len: u32) -> [u8; 28] {
    let mut wire = [0; 28];
    let fields = [
        &REQUEST.to_be_bytes()[..],
        &0_u16.to_be_bytes(),
        &command.to_be_bytes(),
        &cookie.to_be_bytes(),
        &offset.to_be_bytes(),
        &len.to_be_bytes(),
    ];
    for (to, from) in wire.iter_mut().zip(fields.into_iter().flatten()) {
        *to = *from;
    }
    wire
}

/// Takes integers off the front of a message.
pub(crate) struct Fields<'a>(pub(crate) &'a [u8]);

impl<'a> Fields<'a> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*head)
    }

    pub(crate) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    pub(crate) fn bytes(&mut self, len: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(head)
    }
}

//! Numbers of the protocol, by the names that its document gives them, less the prefix `NBD_`.

use std::fmt;

/// `INIT_PASSWD`, the first eight bytes a server sends: `NBDMAGIC`.
pub const INIT_PASSWD: u64 = 0x4e42_444d_4147_4943;
/// `IHAVEOPT`, which opens a newstyle greeting and every option.
pub const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// `cliserv_magic` of the oldstyle handshake.
pub const OLDSTYLE_MAGIC: u64 = 0x0000_4202_8186_1253;
/// Opens every reply to an option.
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// `REQUEST_MAGIC`.
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
/// `EXTENDED_REQUEST_MAGIC`.
pub const EXTENDED_REQUEST_MAGIC: u32 = 0x21e4_1c71;
/// `SIMPLE_REPLY_MAGIC`.
pub const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// `STRUCTURED_REPLY_MAGIC`.
pub const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;
/// `EXTENDED_REPLY_MAGIC`.
pub const EXTENDED_REPLY_MAGIC: u32 = 0x6e8a_278c;

/// The TCP port that IANA assigned.
pub const DEFAULT_PORT: u16 = 10809;

/// `OPT_EXPORT_NAME`
pub const OPT_EXPORT_NAME: u32 = 1;
/// `OPT_ABORT`
pub const OPT_ABORT: u32 = 2;
/// `OPT_LIST`
pub const OPT_LIST: u32 = 3;
/// `OPT_STARTTLS`
pub const OPT_STARTTLS: u32 = 5;
/// `OPT_INFO`
pub const OPT_INFO: u32 = 6;
/// `OPT_GO`
pub const OPT_GO: u32 = 7;
/// `OPT_STRUCTURED_REPLY`
pub const OPT_STRUCTURED_REPLY: u32 = 8;
/// `OPT_LIST_META_CONTEXT`
pub const OPT_LIST_META_CONTEXT: u32 = 9;
/// `OPT_SET_META_CONTEXT`
pub const OPT_SET_META_CONTEXT: u32 = 10;
/// `OPT_EXTENDED_HEADERS`
pub const OPT_EXTENDED_HEADERS: u32 = 11;

/// `REP_ACK`
pub const REP_ACK: u32 = 1;
/// `REP_SERVER`
pub const REP_SERVER: u32 = 2;
/// `REP_INFO`
pub const REP_INFO: u32 = 3;
/// `REP_META_CONTEXT`
pub const REP_META_CONTEXT: u32 = 4;
/// Set in every reply type that is an error.
pub const REP_FLAG_ERROR: u32 = 1 << 31;
/// `REP_ERR_UNSUP`
pub const REP_ERR_UNSUP: u32 = REP_FLAG_ERROR | 1;
/// `REP_ERR_POLICY`
pub const REP_ERR_POLICY: u32 = REP_FLAG_ERROR | 2;
/// `REP_ERR_INVALID`
pub const REP_ERR_INVALID: u32 = REP_FLAG_ERROR | 3;
/// `REP_ERR_PLATFORM`
pub const REP_ERR_PLATFORM: u32 = REP_FLAG_ERROR | 4;
/// `REP_ERR_TLS_REQD`
pub const REP_ERR_TLS_REQD: u32 = REP_FLAG_ERROR | 5;
/// `REP_ERR_UNKNOWN`
pub const REP_ERR_UNKNOWN: u32 = REP_FLAG_ERROR | 6;
/// `REP_ERR_SHUTDOWN`
pub const REP_ERR_SHUTDOWN: u32 = REP_FLAG_ERROR | 7;
/// `REP_ERR_BLOCK_SIZE_REQD`
pub const REP_ERR_BLOCK_SIZE_REQD: u32 = REP_FLAG_ERROR | 8;
/// `REP_ERR_TOO_BIG`
pub const REP_ERR_TOO_BIG: u32 = REP_FLAG_ERROR | 9;
/// `REP_ERR_EXT_HEADER_REQD`
pub const REP_ERR_EXT_HEADER_REQD: u32 = REP_FLAG_ERROR | 10;

/// `INFO_EXPORT`
pub const INFO_EXPORT: u16 = 0;
/// `INFO_NAME`
pub const INFO_NAME: u16 = 1;
/// `INFO_DESCRIPTION`
pub const INFO_DESCRIPTION: u16 = 2;
/// `INFO_BLOCK_SIZE`
pub const INFO_BLOCK_SIZE: u16 = 3;

/// `CMD_READ`
pub const CMD_READ: u16 = 0;
/// `CMD_DISC`
pub const CMD_DISC: u16 = 2;
/// `CMD_TRIM`
pub const CMD_TRIM: u16 = 4;
/// `CMD_BLOCK_STATUS`
pub const CMD_BLOCK_STATUS: u16 = 7;

/// `REPLY_FLAG_DONE`
pub const REPLY_FLAG_DONE: u16 = 1;
/// `REPLY_TYPE_NONE`
pub const REPLY_NONE: u16 = 0;
/// `REPLY_TYPE_OFFSET_DATA`
pub const REPLY_OFFSET_DATA: u16 = 1;
/// `REPLY_TYPE_OFFSET_HOLE`
pub const REPLY_OFFSET_HOLE: u16 = 2;
/// `REPLY_TYPE_BLOCK_STATUS`
pub const REPLY_BLOCK_STATUS: u16 = 5;
/// `REPLY_TYPE_BLOCK_STATUS_EXT`
pub const REPLY_BLOCK_STATUS_EXT: u16 = 6;
/// Set in every chunk type that is an error.
pub const REPLY_FLAG_ERROR: u16 = 1 << 15;
/// `REPLY_TYPE_ERROR`
pub const REPLY_ERROR: u16 = REPLY_FLAG_ERROR | 1;
/// `REPLY_TYPE_ERROR_OFFSET`
pub const REPLY_ERROR_OFFSET: u16 = REPLY_FLAG_ERROR | 2;

/// The name of the context that tells holes and zeroes.
pub const BASE_ALLOCATION: &str = "base:allocation";
/// What the name of every QEMU dirty bitmap's context starts with.
pub const QEMU_DIRTY_BITMAP: &str = "qemu:dirty-bitmap:";
/// `STATE_HOLE` of `base:allocation`: nothing is allocated there.
pub const STATE_HOLE: u64 = 1;
/// `STATE_ZERO` of `base:allocation`: it reads as zeroes. Only this permits skipping a read.
pub const STATE_ZERO: u64 = 2;
/// Bit 0 of a `qemu:dirty-bitmap:` context: changed since the bitmap began.
pub const STATE_DIRTY: u64 = 1;

macro_rules! flags {
    ($(#[$doc:meta])* $name:ident: $bits:ty { $($(#[$flag_doc:meta])* $flag:ident = $bit:expr, $label:expr;)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
        pub struct $name(pub $bits);

        impl $name {
            $($(#[$flag_doc])* pub const $flag: Self = Self(1 << $bit);)*

            /// Whether every bit of `other` is set.
            #[must_use]
            pub fn has(self, other: Self) -> bool {
                self.0 & other.0 == other.0
            }

            /// The names of the known bits that are set, lowest first.
            pub fn names(self) -> impl Iterator<Item = &'static str> {
                [$(($name::$flag, $label)),*].into_iter().filter(move |(flag, _)| self.has(*flag)).map(|(_, name)| name)
            }
        }
    };
}

flags! {
    /// What a server says of itself in its greeting.
    HandshakeFlags: u16 {
        /// Options may be haggled over.
        FIXED_NEWSTYLE = 0, "fixed-newstyle";
        /// 124 zero bytes may be left out of the reply to `OPT_EXPORT_NAME`.
        NO_ZEROES = 1, "no-zeroes";
    }
}

flags! {
    /// What an export can do: the transmission flags.
    ExportFlags: u16 {
        /// The field is filled in.
        HAS_FLAGS = 0, "has-flags";
        /// Nothing can be written.
        READ_ONLY = 1, "read-only";
        /// `CMD_FLUSH` may be sent.
        SEND_FLUSH = 2, "flush";
        /// Writes may ask for stable storage.
        SEND_FUA = 3, "fua";
        /// It seeks slowly.
        ROTATIONAL = 4, "rotational";
        /// `CMD_TRIM` may be sent.
        SEND_TRIM = 5, "trim";
        /// `CMD_WRITE_ZEROES` may be sent.
        SEND_WRITE_ZEROES = 6, "write-zeroes";
        /// A read may ask for an answer in one piece.
        SEND_DF = 7, "df";
        /// Several connections see one and the same disk.
        CAN_MULTI_CONN = 8, "multi-conn";
        /// The experimental resize extension.
        SEND_RESIZE = 9, "resize";
        /// `CMD_CACHE` may be sent.
        SEND_CACHE = 10, "cache";
        /// `CMD_WRITE_ZEROES` may ask to fail rather than be slow.
        SEND_FAST_ZERO = 11, "fast-zero";
        /// `CMD_BLOCK_STATUS` may name the contexts it asks for.
        BLOCK_STATUS_PAYLOAD = 12, "block-status-payload";
    }
}

flags! {
    /// Flags of a command.
    CommandFlags: u16 {
        /// Each context is to answer with one extent only.
        REQ_ONE = 3, "req-one";
    }
}

/// The value of an error field, never zero. Values are those of Linux's errno, restricted by the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ServerErrno(pub u32);

impl ServerErrno {
    /// `EPERM`
    pub const EPERM: Self = Self(1);
    /// `EIO`
    pub const EIO: Self = Self(5);
    /// `ENOMEM`
    pub const ENOMEM: Self = Self(12);
    /// `EINVAL`
    pub const EINVAL: Self = Self(22);
    /// `ENOSPC`
    pub const ENOSPC: Self = Self(28);
    /// `EOVERFLOW`
    pub const EOVERFLOW: Self = Self(75);
    /// `ENOTSUP`
    pub const ENOTSUP: Self = Self(95);
    /// `ESHUTDOWN`
    pub const ESHUTDOWN: Self = Self(108);
}

impl fmt::Display for ServerErrno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::EPERM => f.write_str("operation not permitted (EPERM)"),
            Self::EIO => f.write_str("input/output error (EIO)"),
            Self::ENOMEM => f.write_str("out of memory (ENOMEM)"),
            Self::EINVAL => f.write_str("invalid argument (EINVAL)"),
            Self::ENOSPC => f.write_str("no space left (ENOSPC)"),
            Self::EOVERFLOW => f.write_str("value too large (EOVERFLOW)"),
            Self::ENOTSUP => f.write_str("not supported (ENOTSUP)"),
            Self::ESHUTDOWN => f.write_str("the server is shutting down (ESHUTDOWN)"),
            Self(other) => write!(f, "error {other}"),
        }
    }
}

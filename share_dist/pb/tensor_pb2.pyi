from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

class Precision(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PRECISION_UNSPECIFIED: _ClassVar[Precision]
    FLOAT32: _ClassVar[Precision]
    BFLOAT16: _ClassVar[Precision]
    INT8: _ClassVar[Precision]
    INT4: _ClassVar[Precision]
PRECISION_UNSPECIFIED: Precision
FLOAT32: Precision
BFLOAT16: Precision
INT8: Precision
INT4: Precision

class PayloadHeader(_message.Message):
    __slots__ = ("wire_version", "num_bytes", "num_chunks", "sha256")
    WIRE_VERSION_FIELD_NUMBER: _ClassVar[int]
    NUM_BYTES_FIELD_NUMBER: _ClassVar[int]
    NUM_CHUNKS_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    wire_version: int
    num_bytes: int
    num_chunks: int
    sha256: bytes
    def __init__(self, wire_version: _Optional[int] = ..., num_bytes: _Optional[int] = ..., num_chunks: _Optional[int] = ..., sha256: _Optional[bytes] = ...) -> None: ...

class Chunk(_message.Message):
    __slots__ = ("index", "data", "prefix_sha256")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    PREFIX_SHA256_FIELD_NUMBER: _ClassVar[int]
    index: int
    data: bytes
    prefix_sha256: bytes
    def __init__(self, index: _Optional[int] = ..., data: _Optional[bytes] = ..., prefix_sha256: _Optional[bytes] = ...) -> None: ...

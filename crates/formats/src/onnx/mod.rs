//! ONNX models: protobuf, graph and external data.

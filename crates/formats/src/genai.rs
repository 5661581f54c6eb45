//! `genai_config.json`: how an ONNX Runtime GenAI folder describes its model.

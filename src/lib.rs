//! A gateway for fine-tuned language models: one base model resident, many LoRA adapters, every answer on record.

"""What a recipe may switch on beside the method: compile, CUDA graphs, averages, mixup."""

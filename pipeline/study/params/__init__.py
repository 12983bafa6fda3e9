"""What was asked: params.yaml, validated as a whole."""

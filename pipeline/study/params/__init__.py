"""The settings of a study: params.yaml, validated as a whole."""

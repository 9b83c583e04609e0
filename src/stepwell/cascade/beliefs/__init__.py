"""How likely each stage's answer is right: features of prompts and answers, and the predictor."""

"""The methods that CPPO is compared with: their training, advantages and inference."""

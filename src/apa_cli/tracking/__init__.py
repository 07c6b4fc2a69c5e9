"""What a run writes for people: metrics, samples, pictures and a report; in its folder, on wandb, on the terminal."""

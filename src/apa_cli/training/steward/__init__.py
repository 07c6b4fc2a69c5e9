"""What keeps a run alive: signals, too little memory, numbers that are not finite, limits that end it."""

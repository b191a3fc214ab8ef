"""What is measured, on which pictures, and the scoreboard."""

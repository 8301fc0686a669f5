"""Commands that span both programs: they start coordinator and worker as processes."""

"""Parts of model folders that engines and learner share: adapters, processors."""

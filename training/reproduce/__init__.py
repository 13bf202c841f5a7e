"""The paper's tables and sweeps, cell by cell: what runs, where it is kept, how it is written up."""

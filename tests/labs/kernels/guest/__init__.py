"""What runs inside the kernel lab's nodes, copied into their image: nothing here is imported."""

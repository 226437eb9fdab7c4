def test_x(ann, redis): 
    assert ann
